//! Two agents and one directory: the second is refused and told who has it, also while the first one stands still; a lock without a
//! holder keeps nobody out. The state directory and the cache directory are guarded separately.

use std::{fs, path::Path};

use penstock_tests::{
    agent::{Agent, Place},
    workdir::Workdir,
};
use rustix::process::{Pid, Signal, kill_process};

/// The process that a lock file names.
fn owner(lock: &Path) -> Pid {
    let text = fs::read_to_string(lock).expect("a lock file");
    Pid::from_raw(text.trim().parse().expect("a process id")).expect("not zero")
}

/// A place of its own beside the first: the state in `state`, the cache in `cache`.
fn beside(work: &Workdir, name: &str, state: &Path, cache: &Path) -> Place {
    let flags = ["--cache-dir", cache.to_str().expect("UTF-8")];
    Place::new(work.path()).with_state(state).with_socket(&work.join(name)).with(&flags)
}

/// Both ways in which a second agent may come upon what the first one has.
fn rivals(work: &Workdir) -> [(Place, &'static str); 2] {
    let (state, cache) = (work.join("state"), work.join("cache"));
    let same_state = beside(work, "second.sock", &state, &work.join("other-cache"));
    let same_cache = beside(work, "third.sock", &work.join("other-state"), &cache);
    [(same_state, "state directory"), (same_cache, "cache directory")]
}

fn first(work: &Workdir) -> (Agent, Pid) {
    let agent = beside(work, "first.sock", &work.join("state"), &work.join("cache")).start();
    let pid = owner(&work.join("state/lock"));
    assert_eq!(owner(&work.join("cache/lock")), pid);
    (agent, pid)
}

/// Every rival is refused with one line that names the directory, the holder, and what to do.
fn all_are_refused(work: &Workdir, pid: Pid) {
    for (rival, what) in rivals(work) {
        let ended = rival.refused();
        assert!(ended.code.is_some_and(|code| code != 0), "{what}: {ended:?}");
        let said = ended.stderr.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {ended:?}"));
        assert!(said.contains(&pid.as_raw_nonzero().to_string()), "no process id: {said}");
        assert!(said.contains("in use") && said.contains("stop that"), "it says neither why nor what to do: {said}");
    }
}

#[test]
fn a_second_agent_is_refused_also_while_the_first_stands_still_and_the_first_goes_on() {
    let work = Workdir::new();
    let (agent, pid) = first(&work);
    all_are_refused(&work, pid);
    kill_process(pid, Signal::STOP).expect("our agent");
    all_are_refused(&work, pid);
    kill_process(pid, Signal::CONT).expect("our agent");
    // Nothing of it was touched meanwhile.
    assert_eq!(agent.get("/v1/cache")["index"]["state"], "open");
    assert_eq!((owner(&work.join("state/lock")), owner(&work.join("cache/lock"))), (pid, pid));
    assert!(agent.stop().success());
    for (rival, _) in rivals(&work) {
        assert!(rival.start().stop().success(), "what nobody holds is free");
    }
}

#[test]
fn a_lock_that_nobody_holds_keeps_nobody_out_whatever_it_says() {
    let work = Workdir::new();
    let (agent, pid) = first(&work);
    agent.kill();
    assert_eq!(owner(&work.join("state/lock")), pid, "a killed agent leaves its name");
    let living = std::process::id().to_string();
    for text in ["", "no number", "99999999999999999999", &living] {
        for lock in ["state/lock", "cache/lock"] {
            fs::write(work.join(lock), text).expect("a lock file");
        }
        let (agent, _) = first(&work);
        agent.kill();
    }
}
