//! What whoever started this process says about how it is looked after: systemd's variables (sd_notify(3), sd_listen_fds(3)), and the
//! one of `penstock supervise`.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, time::Duration};

/// Who keeps descriptors for an agent: set by `penstock supervise` for its own, or the path of the socket of `penstock keep`.
pub const SUPERVISED_VARIABLE: &str = "PENSTOCK_KEEPER";
/// Its value under `penstock supervise`: standard input is the socket to the supervisor.
pub const SUPERVISED: &str = "stdin";

/// The service that this process is, as far as it was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// `$NOTIFY_SOCKET`: where the service manager takes messages. A path, or `@` and an abstract name.
    pub notify_socket: Option<String>,
    /// `$LISTEN_FDNAMES` of the `$LISTEN_FDS` descriptors given to this process, from number 3 on; unnamed ones are empty.
    pub given: Vec<String>,
    /// `$FDSTORE`: how many descriptors the service manager keeps for us. Set by systemd from 254 on; a unit says it for older ones.
    pub keeps: usize,
    /// Half of `$WATCHDOG_USEC`: how often the service manager wants to hear that we live.
    pub watchdog: Option<Duration>,
    /// Whether standard input is the socket to our supervisor.
    pub is_supervised: bool,
    /// The socket of the `penstock keep` that keeps descriptors for us.
    pub keeper: Option<PathBuf>,
}

impl Service {
    /// As the environment of this process says.
    #[must_use]
    pub fn of_process() -> Self {
        Self::from_environment(&std::env::vars_os().collect(), std::process::id())
    }

    /// As `environment` says to process `pid`. What is not understood is as if it were not there.
    #[must_use]
    pub fn from_environment(environment: &BTreeMap<OsString, OsString>, pid: u32) -> Self {
        let text = |name: &str| environment.get(OsString::from(name).as_os_str())?.to_str();
        let number = |name: &str| text(name)?.parse::<u64>().ok();
        // Variables for another process, such as our parent, are inherited like all others.
        let is_ours = |name: &str| number(name) == Some(u64::from(pid));
        let fds = if is_ours("LISTEN_PID") { number("LISTEN_FDS").unwrap_or(0) } else { 0 };
        let names = text("LISTEN_FDNAMES").unwrap_or_default().split(':').map(str::to_owned);
        let given =
            names.chain(std::iter::repeat(String::new())).take(usize::try_from(fds.min(MOST_GIVEN)).unwrap_or(0));
        let watched = text("WATCHDOG_PID").is_none() || is_ours("WATCHDOG_PID");
        Self {
            notify_socket: text("NOTIFY_SOCKET").map(str::to_owned),
            given: given.collect(),
            keeps: number("FDSTORE").and_then(|most| usize::try_from(most).ok()).unwrap_or(0),
            watchdog: number("WATCHDOG_USEC").filter(|us| watched && *us > 0).map(|us| Duration::from_micros(us) / 2),
            is_supervised: text(SUPERVISED_VARIABLE) == Some(SUPERVISED),
            keeper: text(SUPERVISED_VARIABLE).filter(|value| value.starts_with('/')).map(PathBuf::from),
        }
    }
}

/// Descriptors given at most: far beyond what is stored, and a bound on what a wrong variable makes us look at.
const MOST_GIVEN: u64 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn service(variables: &[(&str, &str)]) -> Service {
        Service::from_environment(&variables.iter().map(|(k, v)| (k.into(), v.into())).collect(), 7)
    }

    #[test]
    fn descriptors_are_taken_by_the_process_that_they_are_for() {
        let ours = [("LISTEN_PID", "7"), ("LISTEN_FDS", "3"), ("LISTEN_FDNAMES", "fuse.a:fuse.b")];
        assert_eq!(service(&ours).given, ["fuse.a", "fuse.b", ""]);
        assert!(service(&[("LISTEN_PID", "8"), ("LISTEN_FDS", "3")]).given.is_empty());
        assert!(service(&[("LISTEN_FDS", "3")]).given.is_empty());
        assert!(service(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "-1")]).given.is_empty());
        assert_eq!(service(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "9999999999")]).given.len(), 65_536);
    }

    #[test]
    fn a_keeper_is_named_by_a_path_and_a_supervisor_by_its_word() {
        let by = |value| service(&[(SUPERVISED_VARIABLE, value)]);
        assert_eq!((by("/run/k.sock").keeper, by("/run/k.sock").is_supervised), (Some("/run/k.sock".into()), false));
        assert_eq!((by(SUPERVISED).keeper, by(SUPERVISED).is_supervised), (None, true));
        assert_eq!(by("elsewhere"), Service::default());
    }

    #[test]
    fn a_store_without_a_size_keeps_nothing_and_the_watchdog_is_fed_twice_as_often_as_asked() {
        let told = service(&[("NOTIFY_SOCKET", "/run/n"), ("WATCHDOG_USEC", "3000000"), ("FDSTORE", "12")]);
        assert_eq!((told.keeps, told.watchdog), (12, Some(Duration::from_millis(1500))));
        assert_eq!(service(&[("NOTIFY_SOCKET", "/run/n")]).keeps, 0);
        assert_eq!(service(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "8")]).watchdog, None);
        assert_eq!(service(&[]), Service::default());
    }
}
