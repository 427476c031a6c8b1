//! A stand-in for systemd in a root directory ([`Debian`]): its `systemctl` asks this process, which runs what the units say.
//!
//! What it knows of units: `ExecStart`, `Environment`, `Type=notify` (for real, over sd_notify(3)), `RuntimeDirectory`, `StateDirectory`, and what
//! `enable` links. It keeps no descriptors.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{fs::symlink, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::Signal,
};

use crate::{debian::Debian, process::Process};

/// A unit is up or down within seconds; a machine under load takes more.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often something is looked at while nothing is logged.
const TICK: Duration = Duration::from_millis(100);
/// Where the two sides meet, in the root.
const MEETING: &str = "run/stand-in";
/// What ends the stand-in.
const END: &str = "end";
/// One command at a time asks, and prints and ends as it is told.
const SYSTEMCTL: &str = "#!/bin/sh\n\
    exec 9>/run/stand-in/lock\n\
    flock 9\n\
    echo \"$*\" >/run/stand-in/asked\n\
    { read -r status; cat; } </run/stand-in/answered\n\
    exit \"$status\"\n";

/// What a command is answered: its exit status, and what it prints.
type Answer = (u8, String);

#[derive(Debug)]
struct Units {
    root: PathBuf,
    running: Mutex<BTreeMap<String, Process>>,
    told: Mutex<Vec<String>>,
}

/// The stand-in. Dropping it ends every unit.
#[derive(Debug)]
pub struct Systemd {
    units: Arc<Units>,
    thread: Option<JoinHandle<()>>,
}

impl Systemd {
    /// Has `debian` believe that systemd runs it.
    ///
    /// # Panics
    /// When its files cannot be made.
    #[must_use]
    pub fn of(debian: &Debian) -> Self {
        let root = debian.root().to_owned();
        for dir in [MEETING, "run/systemd/system"] {
            fs::create_dir_all(root.join(dir)).expect("a directory");
        }
        for name in ["asked", "answered"] {
            mknodat(CWD, root.join(MEETING).join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a fifo");
        }
        debian.program("/usr/bin/systemctl", SYSTEMCTL);
        let units = Arc::new(Units { root, running: Mutex::default(), told: Mutex::default() });
        let of_thread = units.clone();
        let thread = thread::spawn(move || while of_thread.answer_next() {});
        Self { units, thread: Some(thread) }
    }

    /// What it was told since it was last asked this, without questions: `restart penstock`, and so on.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.units.told.lock())
    }

    /// Whether a unit runs.
    #[must_use]
    pub fn runs(&self, unit: &str) -> bool {
        self.units.running.lock().contains_key(unit)
    }

    /// Starts a unit, as at boot.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(&self, unit: &str) {
        assert_eq!(self.units.start(unit), 0, "{unit} starts");
    }

    /// Waits until `found` is true; asked again with each line that a running unit logs.
    ///
    /// # Panics
    /// When it is not in time, or the unit does not run.
    pub fn until(&self, unit: &str, mut found: impl FnMut() -> bool) {
        let running = self.units.running.lock();
        let process = running.get(unit).expect("the unit runs");
        let is_so = process.wait_for(PATIENCE, TICK, |_| found().then_some(()));
        assert!(is_so.is_some(), "what is waited for comes");
    }

    /// What a running unit has logged so far.
    #[must_use]
    pub fn log(&self, unit: &str) -> Vec<String> {
        self.units.running.lock().get(unit).map(Process::lines).unwrap_or_default()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let asked = self.units.root.join(MEETING).join("asked");
        let ended = File::options().write(true).open(asked).and_then(|mut fifo| writeln!(fifo, "{END}"));
        if ended.is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
        let names: Vec<String> = self.units.running.lock().keys().cloned().collect();
        for name in names {
            self.units.stop(&name);
        }
    }
}

impl Units {
    /// Takes one question and answers it; false at the end.
    fn answer_next(&self) -> bool {
        let meeting = self.root.join(MEETING);
        let mut line = String::new();
        // Waits until somebody asks.
        let asked = File::open(meeting.join("asked")).expect("the fifo");
        BufReader::new(asked).read_line(&mut line).expect("a line");
        if line.trim_end() == END {
            return false;
        }
        let (status, text) = self.answer(line.trim_end());
        let mut answered = File::options().write(true).open(meeting.join("answered")).expect("the fifo");
        // It may have been killed meanwhile.
        let _ = write!(answered, "{status}\n{text}");
        true
    }

    fn answer(&self, line: &str) -> Answer {
        let has_now = line.split(' ').any(|word| word == "--now");
        let mut words = line.split(' ').filter(|word| !word.starts_with('-'));
        let verb = words.next().unwrap_or_default();
        let units: Vec<&str> = words.map(|unit| unit.strip_suffix(".service").unwrap_or(unit)).collect();
        if !verb.starts_with("is-") && verb != "show" {
            self.told.lock().push([&[verb], &units[..]].concat().join(" "));
        }
        let each = |act: &dyn Fn(&str) -> u8| units.iter().map(|unit| act(unit)).max().unwrap_or(0);
        match verb {
            "daemon-reload" => (0, String::new()),
            "is-active" => (each(&|unit| if self.is_active(unit) { 0 } else { 3 }), String::new()),
            "is-enabled" => match each(&|unit| u8::from(!self.link(unit).is_symlink())) {
                0 => (0, "enabled\n".to_owned()),
                status => (status, "disabled\n".to_owned()),
            },
            "preset" => (each(&|unit| self.enable(unit)), String::new()),
            "enable" => {
                (each(&|unit| self.enable(unit).max(if has_now { self.start(unit) } else { 0 })), String::new())
            }
            "disable" => (each(&|unit| self.disable(unit, has_now)), String::new()),
            "start" => (each(&|unit| self.start(unit)), String::new()),
            "stop" => (each(&|unit| self.stop(unit)), String::new()),
            "restart" => (each(&|unit| self.stop(unit).max(self.start(unit))), String::new()),
            "show" => (0, units.first().map(|unit| self.show(unit)).unwrap_or_default()),
            _ => (64, format!("the stand-in for systemctl does not know: {line}\n")),
        }
    }

    fn is_active(&self, unit: &str) -> bool {
        self.running.lock().contains_key(unit)
    }

    /// The text of a unit.
    fn unit(&self, unit: &str) -> Option<String> {
        ["etc/systemd/system", "usr/lib/systemd/system"]
            .iter()
            .find_map(|dir| fs::read_to_string(self.root.join(dir).join(format!("{unit}.service"))).ok())
    }

    /// The link by which a unit is enabled.
    fn link(&self, unit: &str) -> PathBuf {
        self.root.join("etc/systemd/system/multi-user.target.wants").join(format!("{unit}.service"))
    }

    fn enable(&self, unit: &str) -> u8 {
        let link = self.link(unit);
        fs::create_dir_all(link.parent().expect("a directory")).expect("a directory");
        match symlink(format!("/usr/lib/systemd/system/{unit}.service"), &link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => 1,
            _ if self.unit(unit).is_none() => 1,
            _ => 0,
        }
    }

    fn disable(&self, unit: &str, now: bool) -> u8 {
        let _ = fs::remove_file(self.link(unit));
        if now { self.stop(unit) } else { 0 }
    }

    fn show(&self, unit: &str) -> String {
        let Some(text) = self.unit(unit) else { return "LoadState=not-found\nActiveState=inactive\n".to_owned() };
        let state = if self.is_active(unit) { "active" } else { "inactive" };
        let wanted = |name: &str| values(&text, name).last().cloned().unwrap_or_default();
        let (kind, most) = (wanted("Type"), wanted("FileDescriptorStoreMax"));
        format!("LoadState=loaded\nActiveState={state}\nType={kind}\nFileDescriptorStoreMax={most}\n")
    }

    fn start(&self, unit: &str) -> u8 {
        if self.is_active(unit) {
            return 0;
        }
        let Some(text) = self.unit(unit) else { return 5 };
        for (setting, below) in [("RuntimeDirectory", "run"), ("StateDirectory", "var/lib")] {
            for name in values(&text, setting) {
                fs::create_dir_all(self.root.join(below).join(name)).expect("a directory");
            }
        }
        let line = values(&text, "ExecStart").pop().unwrap_or_default();
        let mut command = Command::new("chroot");
        command.arg(&self.root).args(line.split(' ')).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        for setting in values(&text, "Environment") {
            let (name, value) = setting.split_once('=').expect("a variable").to_owned();
            command.env(name, value);
        }
        let notified = Notified::new(&self.root);
        command.env("NOTIFY_SOCKET", Notified::INSIDE);
        let process = Process::start(unit, &mut command);
        let is_up = !values(&text, "Type").contains(&"notify".to_owned()) || notified.wait(&process);
        if is_up {
            self.running.lock().insert(unit.to_owned(), process);
        } else {
            eprintln!("{unit} does not start: {:#?}", process.lines());
        }
        u8::from(!is_up)
    }

    fn stop(&self, unit: &str) -> u8 {
        let process = self.running.lock().remove(unit);
        let Some(mut process) = process else { return 0 };
        process.signal(Signal::TERM);
        u8::from(process.wait(PATIENCE).is_none())
    }
}

/// What a unit says of a setting, each time it does.
fn values(text: &str, name: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).collect()
}

/// The socket on which a service says that it is ready.
struct Notified(UnixDatagram);

impl Notified {
    /// Its path, as the service knows it.
    const INSIDE: &str = "/run/systemd/notify";

    fn new(root: &Path) -> Self {
        let path = root.join(Self::INSIDE.trim_start_matches('/'));
        // That of the service before.
        let _ = fs::remove_file(&path);
        Self(UnixDatagram::bind(path).expect("a socket"))
    }

    /// Whether the service becomes ready, rather than end.
    fn wait(&self, process: &Process) -> bool {
        // Looks up as often as this whether it has ended.
        self.0.set_read_timeout(Some(TICK)).expect("a limit");
        let mut message = [0; 4096];
        let ready = |_: &[String]| {
            let count = self.0.recv(&mut message).ok()?;
            message[..count].split(|&byte| byte == b'\n').any(|line| line == b"READY=1").then_some(())
        };
        process.wait_for(PATIENCE, Duration::from_millis(1), ready).is_some()
    }
}
