//! Two builds against each other: reports of runs that took turns, and how the medians of one compare with the other's.

use std::collections::BTreeMap;

use anyhow::ensure;
use penstock_agent::output::Table;
use serde_json::Value;

/// The fields by which rows of a report are told apart, in the order in which they are shown.
const NAMES: [&str; 9] = ["name", "variant", "work", "below", "side", "what", "share", "read_bytes", "readers"];

/// One thing that both builds measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What: where in the reports it stands.
    pub what: String,
    /// Of each pair of runs, the time of this build over that of the base, ascending.
    pub ratios: Vec<f64>,
}

impl Row {
    /// The ratio in the middle.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.ratios.get(self.ratios.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Compares pairs of reports, base and this build: what every run of both has.
///
/// # Errors
/// When there are no pairs, or nothing that all have.
pub fn rows(base: &[Value], this: &[Value]) -> anyhow::Result<Vec<Row>> {
    ensure!(!base.is_empty() && base.len() == this.len(), "{} runs against {}", base.len(), this.len());
    let pairs: Vec<_> = base.iter().map(medians).zip(this.iter().map(medians)).collect();
    let mut rows = Vec::new();
    for what in pairs[0].0.keys() {
        let ratios = pairs.iter().map(|(base, this)| Some(this.get(what)? / base.get(what)?));
        if let Some(mut ratios) = ratios.collect::<Option<Vec<f64>>>() {
            ratios.sort_by(f64::total_cmp);
            rows.push(Row { what: what.clone(), ratios });
        }
    }
    ensure!(!rows.is_empty(), "the runs have no measurement in common");
    Ok(rows)
}

/// Every median in a report, by where it stands.
fn medians(report: &Value) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    collect(report, "", &mut found);
    found
}

fn collect(value: &Value, at: &str, found: &mut BTreeMap<String, f64>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, at, found)),
        Value::Object(fields) => {
            let mut at = at.to_owned();
            for name in NAMES.iter().filter_map(|name| fields.get(*name)) {
                let name = name.as_str().map_or_else(|| name.to_string(), str::to_owned);
                at = if at.is_empty() { name } else { format!("{at}, {name}") };
            }
            for (key, value) in fields {
                if let (true, Some(median)) = (key == "median_seconds", value.as_f64()) {
                    found.insert(at.clone(), median);
                } else if value.get("median_seconds").is_some() {
                    collect(value, &format!("{at}: {key}"), found);
                } else {
                    collect(value, &at, found);
                }
            }
        }
        _ => {}
    }
}

/// The rows as a table, the worst first.
#[must_use]
pub fn table(rows: &[Row]) -> Table {
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_by(|one, other| other.median().total_cmp(&one.median()));
    let mut table = Table::new(&["MEDIAN OF", ">RUNS", ">TIME OVER BASE", ">LEAST", ">MOST"]);
    for row in rows {
        let shown = |ratio: Option<&f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        let spread = [row.ratios.first(), row.ratios.last()].map(shown);
        let [least, most] = spread;
        table.row([row.what.clone(), row.ratios.len().to_string(), format!("{:.3}", row.median()), least, most]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(hit: f64, miss: f64) -> Value {
        let row = |name, readers, median| json!({ "name": name, "readers": readers, "latency": { "n": 3, "median_seconds": median } });
        json!({ "machine": { "cpus": 2 }, "path": [row("hit", 1, hit), row("miss", 16, miss)] })
    }

    #[test]
    fn the_middle_of_the_pairs_counts_and_its_spread_is_shown() {
        let base = [report(1.0, 2.0), report(1.0, 2.0), report(2.0, 2.0)];
        let this = [report(1.5, 2.0), report(1.1, 2.0), report(2.4, 1.0)];
        let rows = rows(&base, &this).unwrap();
        let hit = rows.iter().find(|row| row.what == "hit, 1: latency").unwrap();
        assert_eq!((hit.ratios.clone(), hit.median()), (vec![1.1, 1.2, 1.5], 1.2));
        assert_eq!(rows.iter().find(|row| row.what.starts_with("miss, 16")).unwrap().median(), 1.0);
        let text = table(&rows).to_string();
        assert!(text.find("hit").unwrap() < text.find("miss").unwrap() && text.contains("1.200"), "{text}");
        assert!(super::rows(&base, &this[..2]).is_err() && super::rows(&[], &[]).is_err());
    }
}
