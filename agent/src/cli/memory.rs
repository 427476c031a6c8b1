//! `penstock memory`: the budget of indexes and buffers, and what of it is used.

use penstock_api::Memory;

use super::{Connection, Failure};
use crate::output::{self, Table, percent, size, with_progress};

pub(super) const HELP: &str = "\
The budget is memory.budget. USED is the most that a part takes at this moment:
what is lent or asked for counts. A part without LIMIT follows what is cached.
Resident is all that the process has in memory beside pages of files.

Examples:
  penstock memory
  penstock memory --output json | jq '.parts[] | select(.name == \"fetching\")'";

pub(super) async fn run(connection: &Connection) -> Result<(), Failure> {
    let memory = with_progress("asking the agent", connection.client()?.memory()).await?;
    Ok(output::answer(connection.output, &memory, text)?)
}

/// The budget for people.
pub(super) fn text(memory: &Memory) -> String {
    let Memory { budget_bytes, used_bytes, resident_bytes, parts } = memory;
    let mut facts = Table::facts();
    let share = percent(*used_bytes, *budget_bytes);
    facts.fact("budget", size(*budget_bytes));
    facts.fact("used", format_args!("{} ({share})", size(*used_bytes)));
    facts.fact("resident", resident_bytes.map_or_else(|| "not known".to_owned(), size));
    let mut table = Table::new(&["PART", ">USED", ">LIMIT"]);
    for part in parts {
        let limit = part.limit_bytes.map_or_else(String::new, size);
        table.row([part.name.name().to_owned(), size(part.used_bytes), limit]);
    }
    format!("{facts}\n{table}")
}
