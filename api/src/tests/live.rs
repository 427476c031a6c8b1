//! The node as it changes, over the real router.

use super::fake::{Fake, Reply, device, get};
use crate::{BlockMap, NodeError, ProblemKind, Pulse, Rows, Stats};

/// The messages of a stream that ended: name and data.
fn messages(reply: &Reply) -> Vec<(String, String)> {
    let field = |part: &str, name: &str| {
        part.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start().to_owned())).unwrap_or_default()
    };
    reply
        .body
        .split("\n\n")
        .map(|part| (field(part, "event:"), field(part, "data:")))
        .filter(|(_, data)| !data.is_empty())
        .collect()
}

fn named<T: serde::de::DeserializeOwned>(messages: &[(String, String)], name: &str) -> Vec<T> {
    let data = messages.iter().filter(|(of, _)| of == name);
    data.map(|(_, data)| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn who_begins_to_look_gets_the_node_all_devices_the_map_and_the_events() {
    let devices = (1..=450).map(|n| device(&format!("d{n}"))).collect();
    let reply = get(Fake { devices, ..Fake::default() }, "/v1/live?device=d7").await;
    assert_eq!((reply.status, reply.content_type.as_str()), (200, "text/event-stream"));
    let messages = messages(&reply);
    let pulse: Pulse = named(&messages, "pulse").remove(0);
    assert_eq!((pulse.devices.attached, pulse.not_ready), (450, None));
    assert_eq!(
        pulse.reads,
        Stats { requests: 450 * 7, bytes_served: 450 * 28_672, hits: 450 * 5, misses: 450 * 2, ..Stats::default() }
    );
    let rows: Vec<Rows> = named(&messages, "devices");
    assert_eq!(rows.iter().map(|rows| rows.rows.len()).collect::<Vec<_>>(), [200, 200, 50]);
    assert_eq!((rows[0].rows[0].blob_bytes, rows[0].rows[0].present_bytes), (1000, 250));
    let map: BlockMap = named(&messages, "map").remove(0);
    assert_eq!((map.id.as_str(), map.blobs[0].cells.as_str()), ("d7", "X2"));
    assert!(messages.iter().any(|(name, data)| name.is_empty() && data.contains("device.attached")));
    assert_eq!(messages.last().map(|(name, _)| name.as_str()), Some("end"));
}

#[test]
fn only_what_changed_is_sent_again_and_what_went_is_named() {
    let mut shown = std::collections::HashMap::new();
    let mut devices = vec![device("d1"), device("d2"), device("d3")];
    assert_eq!(crate::live::changes(&mut shown, &devices)[0].rows.len(), 3);
    assert_eq!(crate::live::changes(&mut shown, &devices), []);
    devices[1].stats.hits += 1;
    devices.remove(0);
    let changes = crate::live::changes(&mut shown, &devices);
    assert_eq!(changes.len(), 2);
    assert_eq!(changes[0].rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["d2"]);
    assert_eq!(changes[1].gone, ["d1"]);
    assert_eq!(crate::live::changes(&mut shown, &devices), []);
}

#[tokio::test]
async fn a_device_that_is_not_there_is_said_and_the_rest_goes_on() {
    let messages = messages(&get(Fake::default(), "/v1/live?device=d9").await);
    assert_eq!(named::<Pulse>(&messages, "pulse").len(), 1);
    let trouble: crate::Problem = named(&messages, "trouble").remove(0);
    assert_eq!(trouble.kind(), Some(ProblemKind::NotFound));
}

#[tokio::test]
async fn who_finds_no_place_gets_a_problem() {
    let full = Fake { failure: Some(NodeError::Busy("32 others".to_owned())), ..Fake::default() };
    assert_eq!(get(full, "/v1/live").await.problem().kind(), Some(ProblemKind::TooManyRequests));
    let unknown = get(Fake::default(), "/v1/live?devices=d1").await.problem();
    assert_eq!(unknown.kind(), Some(ProblemKind::Invalid));
}

#[tokio::test]
async fn a_map_is_asked_for_by_itself_too() {
    let map: BlockMap = get(Fake::default(), "/v1/devices/d1/blocks").await.json();
    assert_eq!(map.blobs.len(), 1);
    assert_eq!(get(Fake::default(), "/v1/devices/d9/blocks").await.problem().kind(), Some(ProblemKind::NotFound));
}
