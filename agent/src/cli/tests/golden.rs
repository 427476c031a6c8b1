//! What is shown, byte for byte. A change here is a change that users see: look at it before it is taken over.

use std::time::Duration;

use penstock_api::{Detached, Device, Event, NodeError, NotDetached, Problem, Stats};

use super::{
    super::{explain, inspect, memory, render, snapshots, top},
    fake,
};
use crate::client::Message;

#[test]
fn the_help() {
    let help = super::command().term_width(100).render_help().to_string();
    assert_eq!(help, include_str!("golden/help.txt"));
}

#[test]
fn a_list_of_devices() {
    let text = render::devices(&[fake::device(), fake::failed_device()]);
    assert_eq!(text, include_str!("golden/list.txt"));
}

#[test]
fn the_counts_of_devices() {
    assert_eq!(render::stats(&[fake::device(), fake::failed_device()]), include_str!("golden/stats.txt"));
}

#[test]
fn the_counts_of_devices_and_how_long_their_reads_took() {
    let text = render::node_stats(&[fake::device()], &fake::device().latency);
    assert_eq!(text, include_str!("golden/node_stats.txt"));
    assert_eq!(render::node_stats(&[fake::device()], &[]), render::stats(&[fake::device()]));
}

#[test]
fn a_frame_of_top() {
    let busy = |before: &Stats| Stats {
        requests: before.requests + 100,
        bytes_served: before.bytes_served + (20 << 20),
        hits: before.hits + 90,
        misses: before.misses + 10,
        in_flight: 3,
        bytes_fetched: before.bytes_fetched + (5 << 20),
        stalled_ms: before.stalled_ms + 1500,
        ..*before
    };
    let before = top::Seen { devices: vec![fake::device(), fake::failed_device()], latency: fake::device().latency };
    let device = Device { stats: busy(&fake::device().stats), id: "d7".to_owned(), ..fake::device() };
    let other = Device { stats: busy(&fake::device().stats), ..fake::device() };
    let now = top::Seen { devices: vec![fake::failed_device(), other, device], ..before.clone() };
    let shown = |lines: Vec<String>| lines.join("\n") + "\n";
    let both =
        shown(top::frame(&before, None, 50)) + &shown(top::frame(&now, Some((&before, Duration::from_secs(2))), 9));
    assert_eq!(both, include_str!("golden/top.txt"));
    assert_eq!(top::frame(&now, None, 3).len(), 3, "a small terminal");
}

#[test]
fn an_explanation() {
    let text = explain::text(&fake::explanation());
    assert_eq!(
        text,
        "d1: started in 0.9 s; 0.6 s waiting on 34 reads from registries\nshown to containerd's snapshots k8s.io/3/web\n"
    );
}

#[test]
fn the_memory() {
    assert_eq!(memory::text(&fake::memory()), include_str!("golden/memory.txt"));
}

#[test]
fn an_inspected_image() {
    assert_eq!(inspect::text(&fake::inspection()), include_str!("golden/inspect.txt"));
}

#[test]
fn one_device() {
    assert_eq!(render::device(&fake::device()), include_str!("golden/device.txt"));
}

#[test]
fn one_device_as_json() {
    let json = crate::output::json(&fake::device()).unwrap();
    assert_eq!(json, include_str!("golden/device.json"));
}

#[test]
fn the_cache() {
    assert_eq!(render::cache(&fake::cache()), include_str!("golden/cache.txt"));
}

#[test]
fn the_endpoints() {
    assert_eq!(render::endpoints(&fake::endpoints()), include_str!("golden/endpoints.txt"));
}

#[test]
fn registries_that_nobody_was_asked_for_are_named_without_an_empty_table() {
    let silent: Vec<_> = fake::endpoints()
        .into_iter()
        .map(|hosts| penstock_api::RegistryHosts { endpoints: Vec::new(), ..hosts })
        .collect();
    let text = render::endpoints(&silent);
    assert!(text.starts_with("docker.io: nobody has been asked since the agent started\n"), "{text}");
    assert!(!text.contains("LATENCY") && render::endpoints(&[]).contains("no registry has been asked"), "{text}");
    let both = render::endpoints(&[fake::endpoints(), silent].concat());
    assert!(both.contains("LATENCY") && both.contains("nobody has been asked"), "{both}");
}

#[test]
fn a_list_of_snapshots() {
    assert_eq!(snapshots::table(&fake::snapshots()), include_str!("golden/snapshots.txt"));
    assert!(snapshots::table(&[]).contains("no snapshots"));
}

#[test]
fn a_repair_of_snapshots() {
    let lost = penstock_api::LostSnapshot {
        number: 7,
        name: Some("k8s.io/3/web".to_owned()),
        why: "its directory is gone".to_owned(),
        advice: "remove the container\x1b[31m".to_owned(),
    };
    let repaired = penstock_api::SnapshotsRepaired {
        snapshots: 2,
        rebuilt: Some("it panicked".to_owned()),
        rewritten: vec!["k8s.io/2/x".to_owned()],
        orphans_removed: 1,
        lost: vec![lost],
    };
    assert_eq!(snapshots::report(&repaired), include_str!("golden/repair.txt"));
}

#[test]
fn the_events() {
    assert_eq!(render::events(&fake::events()), include_str!("golden/events.txt"));
}

#[test]
fn what_is_followed() {
    let [event, ..] = &fake::events().events[..] else { panic!("no event") };
    let messages = [Message::Event(event.clone()), Message::Lost(5), Message::Restarted];
    let lines: Vec<String> = messages.iter().map(render::followed).collect();
    assert_eq!(lines.join("\n") + "\n", include_str!("golden/follow.txt"));
    let lines: Vec<String> = messages.iter().map(|message| render::followed_json(message).unwrap()).collect();
    assert_eq!(lines.join("\n") + "\n", include_str!("golden/follow.json"));
    let hostile = Event { text: "a\nb\u{1b}[2J".to_owned(), ..event.clone() };
    assert!(render::followed(&Message::Event(hostile)).ends_with("a\\nb\\u{1b}[2J"));
}

#[test]
fn what_was_detached() {
    let problem = Problem::from(NodeError::Conflict("/mnt/app is in use".to_owned()));
    let failed = vec![NotDetached { id: "d1".to_owned(), problem }];
    let text = render::detached(&Detached { detached: vec!["d12".to_owned()], failed });
    assert_eq!(text, "d12  detached\nd1   still attached: /mnt/app is in use\n");
}

#[test]
fn versions_with_and_without_an_agent() {
    let both = render::versions(&render::Versions::new("0.1.0", Ok(fake::version())));
    assert_eq!(
        both,
        "command  0.1.0\nagent    0.1.0\nprocess  42, since 2027-01-15T08:00:00Z\nkernel   Linux 6.12.0 x86_64\n"
    );
    let alone = render::versions(&render::Versions::new("0.1.0", Err("no agent at /x".to_owned())));
    assert_eq!(alone, "command  0.1.0\nagent    no agent at /x\n");
}

#[test]
fn nothing_attached_says_how_to_attach() {
    let says = "no devices are attached; `penstock attach REFERENCE` attaches one\n";
    assert_eq!(render::devices(&[]), says);
    assert_eq!(render::stats(&[]), says);
    assert_eq!(render::detached(&Detached::default()), says);
}
