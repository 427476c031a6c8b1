//! Joining neighbours, splitting the long, keeping the budget, letting go.

use futures_util::future::join_all;
use penstock_blob::{BlobSource as _, Purpose};
use penstock_fetcher::Config;
use penstock_registry::{Config as RegistryConfig, Fault};

use crate::support::{Scene, config, range, until};

const CHUNK: u64 = 64 << 10;
const MIB: u64 = 1 << 20;

#[tokio::test]
async fn neighbours_that_wait_together_share_one_request() {
    let scene = Scene::plain(4 << 20).await;
    let reads = (0..16).map(|at| scene.good(at * CHUNK, (at + 1) * CHUNK));
    join_all(reads).await;
    let downloads = scene.downloads();
    assert_eq!(downloads.iter().map(|r| r.range).collect::<Vec<_>>(), [Some(range(0, 16 * CHUNK))]);
}

#[tokio::test]
async fn overlapping_and_equal_reads_share_one_request() {
    let scene = Scene::plain(4 << 20).await;
    join_all([(0, 1000), (0, 1000), (500, 2000), (10, 20), (1999, 2000)].map(|(a, b)| scene.good(a, b))).await;
    assert_eq!(scene.downloads().len(), 1);
    assert_eq!(scene.registry.counts().blob_bytes, 2000);
}

#[tokio::test]
async fn unless_told_reads_are_joined_only_when_they_touch() {
    let scene = Scene::plain(4 << 20).await;
    join_all([(0, 1000), (1000, 2000), (2001, 3000)].map(|(a, b)| scene.good(a, b))).await;
    assert_eq!(scene.downloads().len(), 2);
    assert_eq!(scene.registry.counts().blob_bytes, 2999, "no byte is fetched that nobody asked for");
}

#[tokio::test]
async fn reads_further_apart_than_the_gap_are_fetched_alone() {
    let gap = 64 << 10;
    let scene = Scene::new(4 << 20, RegistryConfig::default(), Config { join_gap_bytes: gap, ..config() }).await;
    join_all([(0, 1000), (1000 + gap, 1100 + gap), (1101 + 2 * gap, 1200 + 2 * gap)].map(|(a, b)| scene.good(a, b)))
        .await;
    let mut ranges: Vec<_> = scene.downloads().iter().filter_map(|r| r.range).collect();
    ranges.sort_unstable();
    assert_eq!(ranges, [range(0, 1100 + gap), range(1101 + 2 * gap, 1200 + 2 * gap)]);
}

#[tokio::test]
async fn joined_and_split_requests_stay_below_the_bound() {
    let config = Config { max_request_bytes: 256 << 10, ..config() };
    let scene = Scene::new(3 << 20, RegistryConfig::default(), config).await;
    join_all((0..32).map(|at| scene.good(at * CHUNK, (at + 1) * CHUNK))).await;
    scene.good(1, (3 << 20) - 1).await;
    let downloads = scene.downloads();
    assert!(downloads.iter().all(|r| r.range.unwrap().len() <= 256 << 10), "{downloads:?}");
    assert_eq!(downloads.len(), 8 + 12);
}

#[tokio::test]
async fn reads_that_wait_for_the_budget_are_joined_meanwhile() {
    let config = Config { max_requests: 1, ..config() };
    let scene = Scene::new(4 << 20, RegistryConfig::default(), config).await;
    scene.registry.fail(Fault::Stall);
    let first = scene.good(2 << 20, (2 << 20) + 10);
    let later = async {
        scene.registry.until_stalled(1).await;
        let reads = join_all((0..8).map(|at| scene.good(at * CHUNK, (at + 1) * CHUNK)));
        let release = async {
            until("all others wait", || scene.fetcher.fetched().requests == 1).await;
            scene.registry.release();
        };
        tokio::join!(reads, release);
    };
    tokio::join!(first, later);
    assert_eq!(scene.downloads().len(), 2);
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_the_budget() {
    let config = Config { max_requests: 6, join_gap_bytes: 0, ..config() };
    let scene = Scene::new(4 << 20, RegistryConfig::default(), config).await;
    // The first answer teaches that the registry serves the bytes itself.
    scene.good(0, 1).await;
    // One blob gets two thirds of the budget, so that one that is stuck leaves something for the others.
    scene.registry.fail(Fault::Stall.times(4));
    let reads = join_all((0..12).map(|at| scene.good(at * 2 * CHUNK, at * 2 * CHUNK + 100)));
    let watch = async {
        scene.registry.until_stalled(4).await;
        assert_eq!(scene.downloads().len(), 1 + 4);
        scene.registry.release();
    };
    tokio::join!(reads, watch);
    assert_eq!(scene.downloads().len(), 1 + 12);
}

#[tokio::test]
async fn no_more_bytes_are_in_flight_than_the_budget() {
    let config = Config { max_bytes: 3 << 19, max_request_bytes: 512 << 10, join_gap_bytes: 0, ..config() };
    let scene = Scene::new(8 << 20, RegistryConfig::default(), config).await;
    scene.good(0, 1).await;
    scene.registry.fail(Fault::Stall.times(2));
    // Twice the budget in one read, and more beside it.
    let reads = async { tokio::join!(scene.good(0, 2 << 20), scene.good(4 << 20, 5 << 20)) };
    let watch = async {
        scene.registry.until_stalled(2).await;
        assert_eq!(scene.downloads().len(), 1 + 2);
        scene.registry.release();
    };
    tokio::join!(reads, watch);
    assert_eq!(scene.downloads().len(), 1 + 6);
}

#[tokio::test]
async fn a_dropped_reader_takes_nobody_else_along() {
    let scene = Scene::plain(1 << 20).await;
    scene.registry.fail(Fault::Stall);
    let stays = scene.good(0, 1000);
    let leaves = async {
        let read = scene.read(1000, 2000);
        let stalled = scene.registry.until_stalled(1);
        tokio::select! { biased; _ = read => panic!("answered by a stalled registry"), () = stalled => {} }
        scene.registry.release();
    };
    tokio::join!(stays, leaves);
    assert_eq!(scene.downloads().len(), 1);
}

#[tokio::test]
async fn when_all_readers_are_dropped_the_request_is_too() {
    let scene = Scene::plain(1 << 20).await;
    scene.registry.fail(Fault::Stall);
    {
        let reads = join_all([scene.read(0, 1000), scene.read(1000, 2000)]);
        tokio::select! { biased; _ = reads => panic!("answered by a stalled registry"), () = scene.registry.until_stalled(1) => {} }
    }
    until("the connection is dropped", || scene.registry.stalled() == 0).await;
    // And its room in the budget is free again.
    scene.good(0, 1000).await;
}

#[tokio::test]
async fn readers_dropped_before_their_turn_cost_no_request() {
    let config = Config { max_requests: 1, ..config() };
    let scene = Scene::new(1 << 20, RegistryConfig::default(), config).await;
    scene.registry.fail(Fault::Stall);
    let first = scene.good(0, 10);
    let others = async {
        scene.registry.until_stalled(1).await;
        let mut read = scene.fetcher.read(scene.blob, range(500_000, 500_010), Purpose::Demand);
        assert!(futures_util::poll!(&mut read).is_pending());
        drop(read);
        scene.registry.release();
    };
    tokio::join!(first, others);
    scene.good(0, 10).await;
    let ranges: Vec<_> = scene.downloads().iter().filter_map(|r| r.range).collect();
    assert_eq!(ranges, [range(0, 10), range(0, 10)]);
}

/// Reads ahead.
async fn ahead(scene: &Scene, start: u64, end: u64) {
    let read = scene.fetcher.read(scene.blob, range(start, end), Purpose::Ahead).await.unwrap();
    assert!(read == scene.truth(range(start, end)));
}

#[tokio::test]
async fn demand_that_joins_a_read_ahead_that_waits_takes_it_along_past_all_others() {
    let scene = Scene::new(16 << 20, RegistryConfig::default(), Config { max_requests: 8, ..config() }).await;
    scene.good(0, 1).await;
    // Half of the requests are for reading ahead, and all of those are stuck.
    scene.registry.fail(Fault::Stall.times(4));
    let stuck = join_all((1..5).map(|at| ahead(&scene, at * MIB, at * MIB + 10)));
    let others = async {
        scene.registry.until_stalled(4).await;
        let waiting = join_all([ahead(&scene, 8 * MIB, 8 * MIB + CHUNK), ahead(&scene, 9 * MIB, 9 * MIB + CHUNK)]);
        let wanted = async {
            scene.good(9 * MIB + 10, 9 * MIB + 20).await;
            let ranges: Vec<_> = scene.downloads().iter().skip(1 + 4).filter_map(|r| r.range).collect();
            assert_eq!(ranges, [range(9 * MIB, 9 * MIB + CHUNK)]);
            scene.registry.release();
        };
        tokio::join!(waiting, wanted);
    };
    tokio::join!(stuck, others);
    assert_eq!(scene.downloads().len(), 1 + 4 + 2);
}

#[tokio::test]
async fn who_wants_what_is_under_way_asks_for_nothing() {
    let scene = Scene::plain(4 << 20).await;
    scene.registry.fail(Fault::Stall);
    let first = ahead(&scene, 0, 4 * CHUNK);
    let later = async {
        scene.registry.until_stalled(1).await;
        // Who is asked has boarded.
        let mut reads = join_all([scene.good(0, 4 * CHUNK), scene.good(CHUNK, 2 * CHUNK), scene.good(5, 10)]);
        assert!(futures_util::poll!(&mut reads).is_pending());
        scene.registry.release();
        reads.await;
    };
    tokio::join!(first, later);
    assert_eq!(scene.downloads().len(), 1);
}

#[tokio::test]
async fn demand_goes_on_while_everything_read_ahead_is_stuck() {
    let config = Config { max_requests: 8, max_bytes: 16 << 20, ..config() };
    let scene = Scene::new(32 << 20, RegistryConfig::default(), config).await;
    scene.good(0, 1).await;
    scene.registry.fail(Fault::Stall.times(4));
    let stuck = join_all((0..12).map(|at| ahead(&scene, 2 * at * MIB, 2 * at * MIB + MIB / 4)));
    let demand = async {
        scene.registry.until_stalled(4).await;
        for at in 0..12 {
            scene.good((2 * at + 1) * MIB + 10, (2 * at + 1) * MIB + 20).await;
        }
        // Eight reads ahead came before all of it, and still wait for their turn.
        let asked: Vec<u64> = scene.downloads().iter().skip(5).filter_map(|r| Some(r.range?.start())).collect();
        assert_eq!(asked, (0..12).map(|at| (2 * at + 1) * MIB + 10).collect::<Vec<_>>());
        scene.registry.release();
    };
    tokio::join!(stuck, demand);
}

#[tokio::test]
async fn what_is_read_ahead_before_what_is_wanted_goes_at_once_in_a_request_of_its_own() {
    let scene = Scene::plain(4 << 20).await;
    scene.good(MIB, MIB + 1).await;
    scene.registry.fail(Fault::Stall.times(2));
    let wanted = scene.good(4 * CHUNK, 5 * CHUNK);
    let behind = join_all((5..8).map(|at| ahead(&scene, at * CHUNK, (at + 1) * CHUNK)));
    let before = join_all((0..4).map(|at| ahead(&scene, at * CHUNK, (at + 1) * CHUNK)));
    let watch = async {
        scene.registry.until_stalled(2).await;
        scene.registry.release();
    };
    tokio::join!(wanted, behind, before, watch);
    let mut ranges: Vec<_> = scene.downloads().iter().skip(1).filter_map(|r| r.range).collect();
    ranges.sort_unstable();
    assert_eq!(ranges, [range(0, 4 * CHUNK), range(4 * CHUNK, 8 * CHUNK)]);
}

#[tokio::test]
async fn who_wants_what_waits_as_read_ahead_gets_it_with_that_and_nothing_comes_twice() {
    let scene = Scene::new(4 << 20, RegistryConfig::default(), Config { max_requests: 1, ..config() }).await;
    scene.registry.fail(Fault::Stall);
    let first = scene.good(MIB, MIB + 1);
    let others = async {
        scene.registry.until_stalled(1).await;
        let wanted = scene.good(4 * CHUNK, 5 * CHUNK);
        let before = join_all((0..4).map(|at| ahead(&scene, at * CHUNK, (at + 1) * CHUNK)));
        let then = scene.good(2 * CHUNK, 3 * CHUNK);
        let go_on = async { scene.registry.release() };
        tokio::join!(wanted, before, then, go_on);
    };
    tokio::join!(first, others);
    assert_eq!(scene.registry.counts().blob_bytes, 1 + 5 * CHUNK);
}
