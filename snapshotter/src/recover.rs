//! What is true after a start: the records of the database and those beside the snapshots, put together.
//!
//! Each commit writes the records beside the snapshots first, then the database, both with the commit's number. So:
//!
//! * A record beside a snapshot that is one commit newer than the database was being written when the power went: it is taken, because
//!   somebody may have been told.
//! * One that is older than the database and that the database does not know was removed: its directory is an orphan.
//! * When any is newer than that, the database lost commits; when there is no database, or it holds a damaged record or not as many as its last
//!   commit says, it cannot be believed. Then the records beside the snapshots are the truth, and the database is written anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::{
    db::{Loaded, Mark},
    dirs::Found,
    record::{Kind, Record, Written},
};

#[cfg(test)]
mod tests;

/// What a repair, or the start, found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repair {
    /// Why the metadata was rebuilt from the records beside the snapshots; none when it was sound.
    pub rebuilt: Option<String>,
    /// Snapshots that there are.
    pub snapshots: usize,
    /// Names whose record was written anew, in one of its two places.
    pub rewritten: Vec<String>,
    /// Snapshots of which something is lost.
    pub lost: Vec<Lost>,
    /// Directories that no record speaks of: deleted.
    pub orphans: usize,
}

/// A snapshot of which something is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The number of its directory.
    pub number: u64,
    /// Its name, where that is known.
    pub name: Option<String>,
    /// What is lost.
    pub why: String,
    /// What to do.
    pub advice: String,
}

/// What to start with.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) records: Vec<Record>,
    /// Records that have to be written again.
    pub(crate) rewrite: Vec<Record>,
    /// Numbers whose record is not to be kept.
    pub(crate) forget: Vec<u64>,
    /// Of these the answer may never have been heard: active ones and views.
    pub(crate) unanswered: Vec<String>,
    pub(crate) report: Repair,
}

/// Decides it.
pub(crate) fn recover(loaded: Loaded, found: Vec<Found>) -> Recovered {
    let (mark, total) = (loaded.mark, loaded.records.len());
    let known = mark.map(|mark| mark.generation);
    let mut stored: BTreeMap<u64, Written> = BTreeMap::new();
    for (number, bytes) in loaded.records {
        if let Some(written) = Written::decode(&bytes).ok().filter(|written| written.record.number == number) {
            stored.insert(number, written);
        }
    }
    let damaged = total - stored.len();
    let mut recovered = Recovered::default();
    let directories: HashSet<u64> = found.iter().map(|found| found.number).collect();
    let mut beside: BTreeMap<u64, Written> = BTreeMap::new();
    let mut unreadable = Vec::new();
    for Found { number, record, has_files } in found {
        match record {
            Some(Ok(written)) if written.record.number == number => drop(beside.insert(number, written)),
            Some(_) if has_files => unreadable.push(number),
            _ => {}
        }
    }
    let newest = beside.values().map(|written| written.generation).max();
    recovered.report.rebuilt = distrust(mark, newest, (total, damaged));
    let trusted = recovered.report.rebuilt.is_none();
    let numbers: BTreeSet<u64> = stored.keys().chain(beside.keys()).copied().collect();
    for number in numbers {
        let (inside, outside) = (stored.remove(&number), beside.remove(&number));
        let in_flight = outside.as_ref().is_some_and(|written| Some(written.generation) > known);
        // Removed, and its directory not yet deleted.
        if inside.is_none() && trusted && !in_flight {
            continue;
        }
        let agree = inside == outside;
        let Some(taken) = [inside, outside].into_iter().flatten().max_by_key(|written| written.generation) else {
            continue;
        };
        // A record cannot be written beside a directory that is gone.
        if (!agree || !trusted) && directories.contains(&number) {
            recovered.rewrite.push(taken.record.clone());
        }
        if in_flight && trusted && taken.record.kind != Kind::Committed {
            recovered.unanswered.push(taken.record.name.clone());
        }
        recovered.records.push(taken.record);
    }
    distinct(&mut recovered);
    report(&mut recovered, &directories, if trusted { Vec::new() } else { unreadable });
    recovered
}

/// Says what was found.
fn report(recovered: &mut Recovered, directories: &HashSet<u64>, unreadable: Vec<u64>) {
    let numbers: HashSet<u64> = recovered.records.iter().map(|record| record.number).collect();
    let report = &mut recovered.report;
    report.snapshots = recovered.records.len();
    report.rewritten = recovered.rewrite.iter().map(|record| record.name.clone()).collect();
    report.lost = unreadable.into_iter().filter(|number| !numbers.contains(number)).map(nameless).collect();
    let gone = recovered.records.iter().filter(|record| !record.is_lazy() && !directories.contains(&record.number));
    report.lost.extend(gone.map(without_files));
    report.lost.extend(parentless(&recovered.records));
}

/// Why the database is not to be believed.
fn distrust(mark: Option<Mark>, newest: Option<u64>, (total, damaged): (usize, usize)) -> Option<String> {
    match (mark, newest) {
        (None, Some(_)) => Some("it was lost".into()),
        (None, None) if total > 0 => Some("it had lost the number of its last commit".into()),
        (Some(mark), Some(newest)) if newest > mark.generation.saturating_add(1) => {
            Some(format!("it was {} commits older than the snapshots", newest - mark.generation))
        }
        (Some(mark), _) if mark.records != total as u64 => {
            Some(format!("it held {total} records instead of {}", mark.records))
        }
        _ if damaged > 0 => Some(format!("{damaged} of its records were damaged")),
        _ => None,
    }
}

/// Of two with one name, the one with the higher number is kept: the other was removed, and its directory not yet deleted.
fn distinct(recovered: &mut Recovered) {
    let mut latest: HashMap<String, u64> = HashMap::new();
    for record in &recovered.records {
        let number = latest.entry(record.name.clone()).or_default();
        *number = record.number.max(*number);
    }
    let keep = |record: &Record| latest.get(&record.name) == Some(&record.number);
    recovered.forget = recovered.records.iter().filter(|record| !keep(record)).map(|record| record.number).collect();
    recovered.records.retain(keep);
    recovered.rewrite.retain(keep);
}

/// `ctr`'s words for having containerd forget a snapshot. The backend's names are `<namespace>/<sequence>/<containerd's name>`.
fn forget(name: &str) -> String {
    let mut parts = name.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(number), Some(key)) if number.parse::<u64>().is_ok() => format!(
            "remove what uses it, then `ctr -n {namespace} snapshots --snapshotter penstock rm '{key}'`, and pull the image again"
        ),
        _ => "remove the images and containers that use it, and pull them again".into(),
    }
}

fn nameless(number: u64) -> Lost {
    Lost {
        number,
        name: None,
        why: "the record beside it is damaged, and the metadata does not know it".into(),
        advice: "its directory is deleted; remove and pull again the images that containerd cannot start".into(),
    }
}

/// The record of a snapshot whose directory is gone.
pub(crate) fn without_files(record: &Record) -> Lost {
    Lost {
        number: record.number,
        name: Some(record.name.clone()),
        why: "its directory is gone".into(),
        advice: forget(&record.name),
    }
}

/// Those whose parent is not there.
pub(crate) fn parentless<'a>(records: impl IntoIterator<Item = &'a Record> + Clone) -> Vec<Lost> {
    let names: HashSet<&str> = records.clone().into_iter().map(|record| record.name.as_str()).collect();
    let lacks = |record: &&Record| record.parent.as_deref().is_some_and(|parent| !names.contains(parent));
    let lost = records.into_iter().filter(lacks).map(|record| Lost {
        number: record.number,
        name: Some(record.name.clone()),
        why: format!("its parent {:?} is gone", record.parent.as_deref().unwrap_or_default()),
        advice: forget(&record.name),
    });
    lost.collect()
}
