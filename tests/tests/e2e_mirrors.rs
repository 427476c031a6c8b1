//! Two real registries, one a mirror of the other by hosts.toml, both behind nginx with TLS of a private authority and a password or tokens,
//! that stop, hang, come back and change places while a device is read.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use penstock_image::write;
use penstock_tests::{
    agent::{Agent, Place},
    docker_registry::DockerRegistry,
    nginx::{Front, Nginx},
    push::Layer,
    require,
    skip::{fuse, program, root},
    tls::{Authority, Certificate},
    token_server::TokenServer,
    workdir::Workdir,
    workspace::text,
};
use serde_json::json;

/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces read of each state of the registries: dozens of chunks, which take some requests.
const PIECES: usize = 3;
const USER: (&str, &str) = ("someone", "a password of both");

fn cannot() -> Option<String> {
    root().or_else(fuse).or_else(|| ["docker-registry", "nginx", "openssl"].into_iter().find_map(program))
}

/// What a registry wants to see of who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    Password,
    Tokens,
}

/// Who gives tokens for the password, under an address with TLS.
struct Issuer {
    signer: Certificate,
    front: Nginx,
    _server: TokenServer,
}

impl Issuer {
    fn new(work: &Workdir, authority: &Authority) -> Self {
        let signer = authority.issue("signer");
        let server = TokenServer::start(signer.clone(), work.join("text"), USER.0, USER.1);
        let front =
            Front { tls: Some(authority.issue("realm")), tokens: Some(server.host().to_owned()), ..Front::default() };
        let front = Nginx::start(work.join("realm"), server.host(), &front);
        Self { signer, front, _server: server }
    }
}

/// A registry with an image, and an address before it that stays.
struct Site {
    registry: DockerRegistry,
    front: Nginx,
    /// The one that was filled, where the one that is read wants tokens.
    _filled: Option<DockerRegistry>,
}

impl Site {
    /// One that wants tokens of `issuer`, or else the password.
    fn new(work: &Workdir, name: &str, authority: &Authority, layer: &Layer, issuer: Option<&Issuer>) -> Self {
        let filled = DockerRegistry::start();
        filled.repository("made/disk").image("1", std::slice::from_ref(layer));
        let closed = issuer.map(|issuer| {
            filled.with_tokens(&format!("https://{}/token", issuer.front.host()), &issuer.signer.certificate)
        });
        let (registry, filled) = match closed {
            Some(closed) => (closed, Some(filled)),
            None => (filled, None),
        };
        let user = issuer.is_none().then(|| (USER.0.to_owned(), USER.1.to_owned()));
        let front = Front { tls: Some(authority.issue(name)), user, ..Front::default() };
        let front = Nginx::start(work.join(name), registry.host(), &front);
        Self { registry, front, _filled: filled }
    }

    /// Starts the registry that was stopped again, behind the same address.
    fn bring_back(&mut self) {
        self.registry.restart();
        self.front.lead_to(self.registry.host());
    }

    /// Downloads of blobs that were answered here with bytes.
    fn downloads(&self) -> usize {
        let is_download = |line: &&String| line.contains("/blobs/") && line.contains(" 206 ");
        self.front.requests().iter().filter(is_download).count()
    }
}

/// Origin and mirror, and an agent that knows both by the files that containerd would have.
struct Pair {
    origin: Site,
    mirror: Site,
    agent: Agent,
    /// What the disk holds.
    truth: Vec<u8>,
    _issuer: Option<Issuer>,
    _work: Workdir,
}

impl Pair {
    fn new(asks: Asks) -> Self {
        let work = Workdir::new();
        let truth = disk();
        let layer = overlaybd(&truth, &work);
        let authority = Authority::new(work.join("tls"));
        let issuer = (asks == Asks::Tokens).then(|| Issuer::new(&work, &authority));
        let [origin, mirror] =
            ["origin", "mirror"].map(|name| Site::new(&work, name, &authority, &layer, issuer.as_ref()));
        let dirs = hosts_dir(&work, (&origin, &mirror), &authority.bundle());
        let auth = STANDARD.encode(format!("{}:{}", USER.0, USER.1));
        let auths = json!({"auths": {origin.front.host(): {"auth": auth}, mirror.front.host(): {"auth": auth}}});
        fs::write(work.dir(".docker").join("config.json"), auths.to_string()).expect("a file");
        let (dirs, bundle) = (dirs.to_str().expect("UTF-8"), authority.bundle());
        let flags = ["--cache-chunk-size", "64KiB", "--fetch-hosts-dirs", dirs];
        let place = Place::new(work.path()).with(&flags);
        // What hosts.toml says of origin and mirror does not hold for the realm.
        let place = match &issuer {
            Some(issuer) => {
                let tls = format!("--fetch-tls={}", issuer.front.host());
                place.with(&[&tls, "--fetch-ca-bundle", bundle.to_str().expect("UTF-8")])
            }
            None => place,
        };
        let agent = place.start();
        Self { origin, mirror, agent, truth, _issuer: issuer, _work: work }
    }

    fn attach(&self, arguments: &[&str]) -> (String, PathBuf) {
        let reference = format!("{}/made/disk:1", self.origin.front.host());
        let device = self.agent.attach(&reference, &[&["--transport", "fuse"], arguments].concat());
        (text(&device["id"]).to_owned(), PathBuf::from(text(&device["device_path"])))
    }
}

/// Incompressible bytes, [`PIECES`] pieces for each state.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; STATES.len() * PIECES * PIECE_BYTES];
    fastrand::Rng::with_seed(37).fill(&mut bytes);
    bytes
}

/// The disk as an OverlayBD layer.
fn overlaybd(disk: &[u8], work: &Workdir) -> Layer {
    let (raw, layer) = (work.join("disk"), work.join("layer"));
    fs::write(&raw, disk).expect("room for the disk");
    let out = File::options().create_new(true).read(true).write(true).open(&layer).expect("a file");
    write::disk(&File::open(raw).expect("the disk"), out, write::Options::default()).expect("a layer");
    Layer::overlaybd(fs::read(layer).expect("the layer"))
}

/// `certs.d` in which the second stands before the first.
fn hosts_dir(work: &Workdir, (origin, mirror): (&Site, &Site), bundle: &Path) -> PathBuf {
    let (origin, mirror, ca) = (origin.front.host(), mirror.front.host(), bundle.display());
    let dir = work.dir(&format!("certs.d/{origin}"));
    let hosts = format!(
        "server = \"https://{origin}\"\nca = \"{ca}\"\n\n\
         [host.\"https://{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"{ca}\"\n"
    );
    fs::write(dir.join("hosts.toml"), hosts).expect("a file");
    work.join("certs.d")
}

/// Who serves a state's reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Mirror,
    Origin,
    Either,
}

/// What changes before a state, and who can serve in it. The mirror is asked first where it works; the origin too, when it is slow, which on a loaded machine
/// it is at any time.
type State = (fn(&mut Site, &mut Site), Server);

/// The states of origin and mirror, one after the other.
const STATES: [State; 9] = [
    (|_, _| {}, Server::Mirror),
    (|_, mirror| mirror.registry.pause(), Server::Origin),
    (
        |_, mirror| {
            mirror.registry.resume();
            mirror.front.stop();
        },
        Server::Origin,
    ),
    (
        |origin, mirror| {
            mirror.front.restart();
            origin.front.stop();
        },
        Server::Mirror,
    ),
    (
        |origin, _| {
            origin.registry.pause();
            origin.front.restart();
        },
        Server::Mirror,
    ),
    (
        |origin, mirror| {
            origin.registry.resume();
            mirror.registry.stop();
        },
        Server::Origin,
    ),
    (
        |origin, mirror| {
            mirror.bring_back();
            origin.registry.stop();
        },
        Server::Mirror,
    ),
    (|origin, _| origin.bring_back(), Server::Either),
    (
        |origin, mirror| {
            origin.front.lead_to(mirror.registry.host());
            mirror.front.lead_to(origin.registry.host());
        },
        Server::Either,
    ),
];

#[test]
fn a_device_is_read_in_full_while_origin_and_mirror_fail_in_turn() {
    require!(cannot());
    read_in_full(Pair::new(Asks::Password));
}

#[test]
fn a_device_is_read_in_full_while_origin_and_mirror_that_want_tokens_fail_in_turn() {
    require!(cannot());
    read_in_full(Pair::new(Asks::Tokens));
}

fn read_in_full(mut pair: Pair) {
    let (id, path) = pair.attach(&[]);
    let file = File::open(&path).expect("the device");
    let mut piece = vec![0; PIECE_BYTES];
    for (nth, (change, server)) in STATES.into_iter().enumerate() {
        change(&mut pair.origin, &mut pair.mirror);
        let before = (pair.mirror.downloads(), pair.origin.downloads());
        for at in (nth * PIECES..(nth + 1) * PIECES).map(|piece| piece * PIECE_BYTES) {
            file.read_exact_at(&mut piece, at as u64).expect("every read is served by one of them");
            assert!(piece == pair.truth[at..at + PIECE_BYTES], "wrong bytes in state {nth} at {at}");
        }
        let grown = (pair.mirror.downloads() > before.0, pair.origin.downloads() > before.1);
        let is_served = match server {
            Server::Mirror => grown.0,
            Server::Origin => grown.1,
            Server::Either => grown.0 || grown.1,
        };
        assert!(is_served, "state {nth} is served by {server:?}, not (mirror, origin) {grown:?}");
    }
    drop(file);
    assert!(fs::read(&path).expect("the device") == pair.truth, "what is cached is right");
    assert_eq!(pair.agent.device(&id)["stats"]["errors"], 0);
}

#[test]
fn with_both_away_readers_wait_and_go_on_when_one_is_back() {
    require!(cannot());
    let mut pair = Pair::new(Asks::Password);
    let (_, path) = pair.attach(&["--on-failure", "wait=10m"]);
    pair.origin.front.stop();
    pair.mirror.front.stop();
    let reader = std::thread::spawn(move || fs::read(path));
    pair.agent.until_event("endpoint.broken");
    assert!(!reader.is_finished(), "there is nobody to read from");
    pair.mirror.front.restart();
    let read = reader.join().expect("no panic").expect("it waited");
    assert!(read == pair.truth, "wrong bytes");
}
