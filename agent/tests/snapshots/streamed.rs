//! A layer of one large Zstandard frame, as zstd(1) writes it: not lazy, but shown at once, and prefetched with several requests in flight.

use std::{fs, path::Path, process::Command, time::Duration};

use penstock_agent::{Accept, Agent, Config};
use penstock_api::{Fate, OnFailure};

use super::{
    Bench, Image,
    attached::{converted, mount_point, request, seen, tree},
    cannot_mount,
    ordinary::{run, told},
    pushed::make,
};

/// An image whose only layer is 20 MB in one frame, and the tree in it.
fn image(bench: &Bench, root: &Path) -> Image {
    fs::create_dir_all(root.join("usr/share")).unwrap();
    let mut state = 7_u64;
    for nth in 0..40 {
        let byte = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        fs::write(root.join(format!("usr/share/{nth}")), (0..500_000).map(byte).collect::<Vec<u8>>()).unwrap();
    }
    let archive = run(Command::new("tar").arg("-C").arg(root).args(["--numeric-owner", "-cf", "-", "."]));
    let file = bench.dir.path().join("archive");
    fs::write(&file, &archive).unwrap();
    let packed = run(Command::new("zstd").args(["-q", "-c"]).arg(&file));
    bench.put_archives("streamed", vec![(archive, packed)])
}

/// The most requests for bytes of the layer that wait for an answer at once, until `reading` ends; what that answers.
async fn in_flight<T>(bench: &Bench, image: &Image, reading: impl Future<Output = T>) -> (usize, T) {
    let mut reading = std::pin::pin!(reading);
    let mut most = 0;
    loop {
        tokio::select! {
            read = &mut reading => return (most, read),
            () = tokio::task::yield_now() => {
                let requests = bench.registry.requests();
                let wait = requests.iter().filter(|request| request.status == 0 && request.digest == Some(image.layers[0]));
                most = most.max(wait.count());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_one_zstd_frame_is_streamed_to_a_node_that_has_nothing_of_it() {
    require_mounts!();
    let bench = Bench::new().await;
    let root = bench.dir.path().join("root");
    let image = image(&bench, &root);
    make(&image, &[]).await;
    bench.registry.set_latency(Duration::from_millis(50));
    let (expected, dir) = (tree(&root), mount_point(&bench));
    for fills in [2, 0] {
        let empty = tempfile::tempdir().unwrap();
        let config = Config {
            layers_accept: Accept::All,
            recordings_fills: fills,
            transport: bench.config().transport,
            ..Config::in_dir(empty.path())
        };
        let agent = Agent::start(config).await.unwrap();
        let device = agent.node().attach(request(&image, &dir)).await.unwrap();
        assert_eq!(device.policy.on_failure, OnFailure::Wait, "bytes that come in their order are no failure");
        if fills > 0 {
            let (most, ()) = in_flight(&bench, &image, told(&agent, "recording.filled")).await;
            assert!(most > 1, "{most} requests at once");
            bench.registry.set_down(true);
        }
        assert_eq!(seen(&dir).await, expected, "{fills} fills");
        bench.registry.set_down(false);
        agent.node().detach(&device.id, false).await.unwrap();
        agent.stop().await.unwrap();
    }
    // A disk is made of it, too.
    let made = converted(&image, "overlaybd").await;
    let agent = Agent::start(bench.config()).await.unwrap();
    let device = agent.node().attach(request(&made, &dir)).await.unwrap();
    assert_eq!(seen(&dir).await, expected);
    agent.node().detach(&device.id, false).await.unwrap();
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn that_a_layer_is_streamed_is_said_before_it_is_pulled() {
    require_mounts!();
    let bench = Bench::new().await;
    let image = image(&bench, &bench.dir.path().join("root"));
    make(&image, &[]).await;
    let agent = Agent::start(Config { layers_accept: Accept::All, ..bench.config() }).await.unwrap();
    let dir = mount_point(&bench);
    let device = agent.node().attach(request(&image, &dir)).await.unwrap();
    let asked = penstock_api::Inspect { reference: image.reference.clone(), platform: None };
    let inspection = agent.node().inspect(asked).await.unwrap();
    let [layer] = &inspection.layers[..] else { panic!("{inspection:?}") };
    assert_eq!((layer.fate, inspection.lazy_layers), (Fate::Streamed, 0), "{layer:?}");
    assert!(layer.why.ends_with("not lazy: streamed from its beginning, prefetched in parallel"), "{}", layer.why);
    agent.node().detach(&device.id, false).await.unwrap();
    agent.stop().await.unwrap();
}
