//! The rows: each fault of the I/O contract, how it is made, and what is promised under it.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    time::Duration,
};

use penstock_registry::{Auth, Credentials, Fault, Redirect};

use super::{Row, Seen, Stand};

const NOTHING: fn(&mut Stand) = |_| {};
const MENDED: fn(&mut Stand) = |stand| {
    stand.registry().release();
    stand.registry().clear_faults();
};

/// A fault that is over before the deadline: no reader notices.
const fn passing(fault: &'static str, strike: fn(&mut Stand)) -> Row {
    let afterwards = "nothing to do";
    Row { fault, cached: Seen::Right, uncached: Seen::Right, event: None, afterwards, strike, heal: NOTHING }
}

/// A fault of the registry that outlasts the deadline.
const fn lasting(fault: &'static str, strike: fn(&mut Stand)) -> Row {
    let event = Some("device.policy_eio");
    let afterwards = "heals by itself";
    Row { fault, cached: Seen::Right, uncached: Seen::Eio, event, afterwards, strike, heal: MENDED }
}

/// All rows, in the order of the document.
#[must_use]
pub fn rows() -> Vec<Row> {
    [registry(), credentials(), wrong_bytes(), local()].concat()
}

fn registry() -> Vec<Row> {
    vec![
        passing("the registry answers 500, twice", |s| s.registry().fail(Fault::Status(500).times(2))),
        passing("429 without Retry-After, twice", |s| s.registry().fail(Fault::TooMany { retry_after: None }.times(2))),
        passing("a connection is reset within a body", |s| {
            s.registry().fail(Fault::ResetMidBody { after_bytes: 1000 }.times(2));
        }),
        passing("an answer is late, within the deadline", |s| {
            s.registry().fail(Fault::Delay(Duration::from_millis(200)).times(1));
        }),
        Row {
            uncached: Seen::Waits,
            event: Some("device.waiting"),
            heal: |stand| stand.registry().set_down(false),
            ..lasting("the registry is down, and the device's policy is to wait", |stand| {
                stand.run(&["set", stand.id(), "--on-failure", "wait=10m"]);
                stand.registry().set_down(true);
            })
        },
        lasting("the registry answers 500 for longer than the deadline", |s| {
            s.registry().fail(Fault::Status(500).always())
        }),
        lasting("429 for longer than the deadline", |s| {
            s.registry().fail(Fault::TooMany { retry_after: None }.always())
        }),
        lasting("every connection is reset", |s| s.registry().fail(Fault::ResetMidBody { after_bytes: 0 }.always())),
        lasting("answers begin and never end", |s| s.registry().fail(Fault::Stall.always())),
        Row {
            heal: |stand| stand.registry().set_bandwidth(None),
            ..lasting("answers drip, a kilobyte a second", |stand| stand.registry().set_bandwidth(Some(1000)))
        },
        Row {
            heal: |stand| stand.registry().set_down(false),
            ..lasting("the registry is down", |stand| stand.registry().set_down(true))
        },
    ]
}

fn credentials() -> Vec<Row> {
    vec![
        Row {
            // The URL at hand stays good; one more refusal sends the agent back to where there is no redirect.
            heal: |stand| {
                stand.registry().set_redirect(None);
                stand.registry().fail(Fault::ExpiredRedirect.times(1));
            },
            ..passing("the signed URL that a download was redirected to has expired", |stand| {
                stand.registry().set_redirect(Some(Redirect { ttl: Duration::from_secs(600), other_port: false }));
                stand.registry().fail(Fault::ExpiredRedirect.times(1));
            })
        },
        Row {
            heal: |stand| stand.registry().set_auth(Auth::None),
            ..passing("the registry wants a token, and takes it back, once", |stand| {
                stand.registry().set_auth(Auth::Token { credentials: None, ttl: Duration::from_secs(600) });
                stand.registry().fail(Fault::Unauthorized.times(1));
            })
        },
        Row {
            event: Some("credentials.refused"),
            afterwards: "new credentials are picked up without a restart",
            heal: |stand| stand.registry().set_auth(Auth::None),
            ..lasting("the credentials are refused for good", |stand| {
                stand.registry().set_auth(Auth::Basic(Credentials::new("nobody", "knows")));
            })
        },
    ]
}

fn wrong_bytes() -> Vec<Row> {
    vec![
        passing("a body is short, twice", |s| s.registry().fail(Fault::ShortBody.times(2))),
        passing("`Content-Range` is about other bytes", |s| s.registry().fail(Fault::WrongContentRange.times(1))),
        passing("200 with the whole blob instead of 206", |s| s.registry().fail(Fault::IgnoreRange.times(1))),
        passing("a bit of a body is flipped, and the format has checks", |s| {
            s.registry().fail(Fault::WrongBytes.times(1));
        }),
        lasting("a bit of every body is flipped, and the format has checks", |s| {
            s.registry().fail(Fault::WrongBytes.always());
        }),
    ]
}

fn local() -> Vec<Row> {
    let served = |fault, event, afterwards, strike: fn(&mut Stand), heal: fn(&mut Stand)| Row {
        fault,
        cached: Seen::Right,
        uncached: Seen::Right,
        event,
        afterwards,
        strike,
        heal,
    };
    vec![
        served(FULL, Some("cache.pressure"), "kept again once there is room", fill_disk, empty_disk),
        served(
            "bits flip in the cache's files",
            Some("cache.corrupt"),
            "dropped, counted, fetched again",
            flip,
            NOTHING,
        ),
        served(
            "the cache's index is deleted between two agents",
            None,
            "made anew from what stands beside the data",
            |stand| {
                stand.stop();
                // The full disk of the row above may have cost it already: it is then set aside, and made again at a start.
                let removed = fs::remove_dir_all(stand.cache_dir().join("index"));
                assert!(removed.is_ok() || !stand.cache_dir().join("index").exists(), "{removed:?}");
                stand.start();
            },
            NOTHING,
        ),
        Row {
            cached: Seen::Pauses,
            uncached: Seen::Pauses,
            ..served(
                "the agent is killed, and started again by what watches it",
                Some("device.resumed"),
                "taken over; mounts and their users stay",
                Stand::kill,
                NOTHING,
            )
        },
        Row {
            fault: "the agent was restarted and the registry is down",
            event: None,
            ..Row {
                heal: |stand| stand.registry().set_down(false),
                ..lasting("", |stand| {
                    stand.stop();
                    stand.registry().set_down(true);
                    stand.start();
                })
            }
        },
    ]
}

fn ballast(stand: &Stand) -> PathBuf {
    stand.cache_dir().join("ballast")
}

/// Writes until there is no room.
/// The fault of a full disk.
const FULL: &str = "the disk of the cache is full";

/// Leaves no room, and waits until the agent has found the reserve of free space broken.
fn fill_disk(stand: &mut Stand) {
    let since = stand.newest_event();
    let mut file = File::create(ballast(stand)).expect("a file");
    let megabyte = vec![1; 1 << 20];
    while file.write_all(&megabyte).is_ok() {}
    while file.write_all(&megabyte[..4096]).is_ok() {}
    stand.check_event(&since, "cache.pressure", FULL);
}

fn empty_disk(stand: &mut Stand) {
    fs::remove_file(ballast(stand)).expect("the ballast");
}

/// Flips a bit in every block of every data file.
fn flip(stand: &mut Stand) {
    let blobs = fs::read_dir(stand.cache_dir().join("blobs")).expect("the cache's blobs");
    let data =
        blobs.map(|entry| entry.expect("an entry").path()).filter(|path| path.extension().is_some_and(|e| e == "data"));
    let mut flipped = 0_u32;
    for path in data {
        let file = File::options().read(true).write(true).open(&path).expect("a data file");
        let mut byte = [0];
        for at in (100..file.metadata().expect("a size").len()).step_by(4096) {
            file.read_exact_at(&mut byte, at).expect("a byte");
            file.write_all_at(&[byte[0] ^ 1], at).expect("a byte");
            flipped += 1;
        }
    }
    assert!(flipped > 0, "there was nothing to damage");
}
