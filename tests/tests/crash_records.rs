//! What is written for an attachment besides chunks: its record and the map of its layers. In which order they reach the disk, what a
//! SIGKILL in between leaves, and what becomes of damaged ones.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use penstock_registry::Config;
use penstock_tests::{
    agent::{Agent, Place},
    fixture,
    loopback::Loopback,
    power::names,
    process::Process,
    require,
    skip::{fuse, program, root},
    tree,
    workdir::Workdir,
    workspace::text,
};
use rustix::process::Signal;

/// As much of the image as is compared.
const HEAD_BYTES: u64 = 4 << 20;
const LONG: Duration = Duration::from_secs(60);

/// A registry, and a place for agents.
struct Bench {
    reference: String,
    place: Place,
    work: Workdir,
    _registry: Loopback,
}

impl Bench {
    fn new() -> Self {
        let work = Workdir::new();
        let registry = Loopback::start(Config::default());
        registry.layout(&fixture::layout(), "fixtures/overlaybd");
        let reference = format!("{}/fixtures/overlaybd:obd-zstd16", registry.host());
        Self { reference, place: Place::new(work.path()), work, _registry: registry }
    }

    fn attach(&self) -> Option<String> {
        let ended = self.place.run(&["attach", &self.reference, "--transport", "fuse", "--output", "json"]);
        (ended.code == Some(0)).then(|| text(&ended.json()["id"]).to_owned())
    }

    fn attachments(&self) -> PathBuf {
        self.place.state().join("attachments")
    }

    fn maps(&self) -> PathBuf {
        self.place.state().join("maps")
    }

    /// Traces the agent with strace: these calls, these options.
    fn trace(&self, calls: &str, options: &[&str]) -> Process {
        let pid = fs::read_to_string(self.place.state().join("lock")).expect("a lock file");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-s", "80", "-p", pid.trim(), "-e", &format!("trace={calls}"), "-o"]);
        let process = Process::start("strace", strace.arg(self.work.join("trace")).args(options));
        let attached = process.wait_for(LONG, LONG, |lines| lines.iter().any(|l| l.contains("attached")).then_some(()));
        assert!(attached.is_some(), "strace: {:?}", process.lines());
        process
    }

    /// Ends a trace and gives its lines. When the agent is dead, the trace has ended or is about to.
    fn traced(&self, mut strace: Process, dead: bool) -> Vec<String> {
        if !dead {
            strace.signal(Signal::INT);
        }
        strace.wait(LONG).expect("strace ends");
        fs::read_to_string(self.work.join("trace")).expect("a trace").lines().map(str::to_owned).collect()
    }
}

fn ids(agent: &Agent) -> Vec<String> {
    let devices = agent.get("/v1/devices");
    let attached = devices.as_array().expect("a list").iter().filter(|device| text(&device["state"]) == "attached");
    attached.map(|device| text(&device["id"]).to_owned()).collect()
}

fn head(agent: &Agent, id: &str) -> String {
    let path = text(&agent.device(id)["device_path"]).to_owned();
    tree::sha256(File::open(path).expect("the device").take(HEAD_BYTES)).expect("the head can be read")
}

fn kinds(agent: &Agent) -> Vec<String> {
    let events = agent.get("/v1/events");
    events["events"].as_array().expect("a list").iter().map(|event| text(&event["kind"]).to_owned()).collect()
}

/// The first line after `from` that holds all of `words`.
fn after(lines: &[String], from: usize, words: &[&str]) -> usize {
    let found = lines.iter().skip(from).position(|line| words.iter().all(|word| line.contains(word)));
    from + found.unwrap_or_else(|| panic!("no {words:?} after line {from} of {lines:#?}"))
}

/// A file is written beside its name, synced, given its name, and the name is synced: the line of the last.
fn appears_whole(lines: &[String], temporary: &str, dir: &Path) -> usize {
    let dir = dir.to_str().expect("UTF-8");
    let made = after(lines, 0, &["openat(", temporary, "O_CREAT"]);
    let written = after(lines, made, &["write", temporary]);
    let synced = after(lines, written, &["sync(", temporary]);
    let named = after(lines, synced, &["rename", temporary]);
    let more = lines[synced..named].iter().find(|line| line.contains(temporary) && line.contains("write"));
    assert!(more.is_none(), "written after it was synced: {more:?}");
    after(lines, named, &["fsync(", &format!("<{dir}>")])
}

#[test]
fn record_and_map_are_on_the_disk_whole_before_the_attach_is_answered() {
    require!(root(), fuse(), program("strace"));
    let bench = Bench::new();
    let agent = bench.place.start();
    let calls = "openat,write,pwrite64,writev,sendto,sendmsg,fsync,fdatasync,rename,renameat,renameat2";
    let strace = bench.trace(calls, &[]);
    let id = bench.attach().expect("an attach");
    let lines = bench.traced(strace, false);
    let record = appears_whole(&lines, &format!("{id}.json.unfinished"), &bench.attachments());
    // One of several tables that are made at the same time: by its whole name.
    let made = &lines[after(&lines, 0, &["openat(", ".building-", "O_CREAT"])];
    let name = made.split('"').nth(1).and_then(|path| path.rsplit('/').next()).expect("a path in quotes");
    let map = appears_whole(&lines, name, &bench.maps());
    let answered = after(&lines, 0, &["HTTP/1.1 201"]);
    assert!(map < record && record < answered, "map {map}, record {record}, answer {answered}: {lines:#?}");
    assert!(agent.stop().success());
}

/// A step of an attach or a detach at which the agent is killed: the call that it is about to make.
struct Step {
    what: &'static str,
    call: &'static str,
    /// Only on the directory of the records.
    on_dir: bool,
    detach: bool,
    /// Whether the record of the second device is there afterwards.
    recorded: bool,
}

/// Before its name is there, a record's calls cannot be told from those of what is written beside it: their order is traced above.
const STEPS: [Step; 3] = [
    Step { what: "record named, name not synced", call: "fsync", on_dir: true, detach: false, recorded: true },
    Step { what: "record about to be removed", call: "unlink", on_dir: false, detach: true, recorded: true },
    Step { what: "record removed, not synced", call: "fsync", on_dir: true, detach: true, recorded: false },
];

#[test]
fn killed_at_each_step_of_a_record_it_starts_with_whole_records_only() {
    require!(root(), fuse(), program("strace"));
    let bench = Bench::new();
    let agent = bench.place.start();
    let first = bench.attach().expect("an attach");
    let truth = head(&agent, &first);
    // Orderly: from here on nothing but records is written.
    assert!(agent.stop().success());
    for step in STEPS {
        let agent = bench.place.start();
        let second = step.detach.then(|| bench.attach().expect("an attach"));
        let inject = format!("inject={}:signal=KILL:when=1", step.call);
        let dir = bench.attachments();
        let mut options = vec!["-e", &inject];
        if step.on_dir {
            options.extend(["-P", dir.to_str().expect("UTF-8")]);
        }
        let strace = bench.trace(step.call, &options);
        match &second {
            Some(id) => assert_ne!(bench.place.run(&["detach", id]).code, Some(0), "{}: it was answered", step.what),
            None => assert_eq!(bench.attach(), None, "{}: it was answered", step.what),
        }
        let lines = bench.traced(strace, true);
        assert!(lines.iter().any(|line| line.contains("killed by SIGKILL")), "{}: {lines:#?}", step.what);
        assert!(lines.iter().any(|line| line.contains("attachments")), "killed elsewhere: {}: {lines:#?}", step.what);
        agent.kill();

        let agent = bench.place.start();
        let found = ids(&agent);
        assert!(found.contains(&first) && found.len() == 1 + usize::from(step.recorded), "{}: {found:?}", step.what);
        found.iter().for_each(|id| assert_eq!(head(&agent, id), truth, "{}: {id}", step.what));
        assert!(names(&bench.attachments()).iter().all(|name| name.ends_with(".json")), "{}", step.what);
        assert!(!kinds(&agent).iter().any(|kind| kind == "state.unreadable_record"), "{}", step.what);
        for id in found.iter().filter(|id| **id != first) {
            let _ = agent.run(&["detach", id]).ok();
        }
        println!("killed: {}: {} record(s) of the second device, all reads right", step.what, found.len() - 1);
        assert!(agent.stop().success());
    }
}

/// A way to damage a file, in words and in deed.
type Damage = (&'static str, fn(&mut Vec<u8>));

const DAMAGES: [Damage; 6] = [
    ("emptied", Vec::clear),
    ("cut", |bytes| bytes.truncate(bytes.len() / 2)),
    ("zeroed", |bytes| bytes.fill(0)),
    ("flipped at its start", |bytes| bytes[0] ^= 0x10),
    ("flipped in the middle", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    }),
    ("lengthened", |bytes| bytes.extend_from_slice(&[0xa5; 700])),
];

#[test]
fn damaged_maps_are_made_again_and_a_damaged_record_is_named_and_left_alone() {
    require!(root(), fuse());
    let bench = Bench::new();
    let agent = bench.place.start();
    let id = bench.attach().expect("an attach");
    let truth = head(&agent, &id);
    assert!(agent.stop().success());
    let maps: Vec<PathBuf> = names(&bench.maps()).iter().map(|name| bench.maps().join(name)).collect();
    assert!(!maps.is_empty(), "the image has a map");
    // What a killed agent leaves half-written.
    fs::write(bench.maps().join(".building-left"), b"half").expect("a file");
    fs::write(bench.attachments().join("left.json.unfinished"), b"{").expect("a file");

    for (what, damage) in DAMAGES {
        for map in &maps {
            let mut bytes = fs::read(map).expect("a map");
            damage(&mut bytes);
            fs::write(map, bytes).expect("a map");
            let agent = bench.place.start();
            assert_eq!(ids(&agent), [id.as_str()], "{} {what}", map.display());
            assert_eq!(head(&agent, &id), truth, "{} {what}", map.display());
            assert!(agent.stop().success());
            let here: Vec<PathBuf> = names(&bench.maps()).iter().map(|name| bench.maps().join(name)).collect();
            assert_eq!(here, maps, "{} {what}: it is made again", map.display());
        }
    }
    assert_eq!(names(&bench.attachments()), [format!("{id}.json")]);

    let record = bench.attachments().join(format!("{id}.json"));
    let whole = fs::read(&record).expect("a record");
    for (what, damage) in DAMAGES {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(&record, &bytes).expect("a record");
        let agent = bench.place.start();
        let told = kinds(&agent).iter().filter(|kind| *kind == "state.unreadable_record").count();
        // A bit of the text that is flipped may leave a record, of another reference; its digests still say what is read.
        let readable = told == 0;
        assert!(told <= 1 && (readable || ids(&agent).is_empty()), "{what}: told {told} times");
        assert!(!readable || what == "flipped in the middle", "{what}: it was taken for a record");
        assert_eq!(fs::read(&record).expect("it is left where it is"), bytes, "{what}");
        assert!(agent.stop().success());
    }
    fs::write(&record, whole).expect("a record");
    let agent = bench.place.start();
    assert_eq!((ids(&agent), head(&agent, &id)), (vec![id], truth));
}
