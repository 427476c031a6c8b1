//! Who asks, how often, and how often wrongly: a bounded table of peers.
//!
//! Pure but for its lock: the time is given.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The most peers that are remembered. Beyond, the one heard of the longest ago without a connection is forgotten, and with it only
/// how often it asked.
const PEERS: usize = 4096;

/// The least time between two events about the same peer.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Events about all peers together: many addresses must not push everything else out of the ring.
const TELL_RATE: Rate = Rate { burst: 10, every: Duration::from_secs(10) };

/// Something that may happen so often: `burst` at once, then one `every` so long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) burst: u32,
    pub(super) every: Duration,
}

/// How much one peer may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections at once.
    pub(super) connections: u32,
    /// Requests.
    pub(super) requests: Rate,
    /// Proofs that prove nothing: wrong tokens and certificates.
    pub(super) failures: Rate,
}

/// One who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum PeerId {
    /// A user of this node, over the unix socket.
    User(u32),
    /// An address, over TCP. Of IPv6 the first half: who has one address there has all of it.
    Address(IpAddr),
}

impl PeerId {
    pub(super) fn address(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(ip) if !ip.is_loopback() => Self::Address(IpAddr::V6((ip.to_bits() & (u128::MAX << 64)).into())),
            other => Self::Address(other),
        }
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Address(IpAddr::V6(ip)) if !ip.is_loopback() => write!(f, "{ip}/64"),
            Self::Address(ip) => write!(f, "{ip}"),
        }
    }
}

/// What may happen again, and when: the moment at which all of the burst is there again.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// How long to wait until it may happen; `None` when it may happen now.
    fn wait(self, rate: Rate, now: Instant) -> Option<Duration> {
        let used_up = self.full_at.saturating_duration_since(now) + rate.every;
        used_up.checked_sub(rate.every * rate.burst).filter(|wait| !wait.is_zero())
    }

    fn take(&mut self, rate: Rate, now: Instant) {
        self.full_at = self.full_at.max(now) + rate.every;
    }
}

#[derive(Debug)]
struct Peer {
    connections: u32,
    requests: Bucket,
    failures: Bucket,
    told_at: Option<Instant>,
    untold: u64,
    seen_at: Instant,
}

/// All peers of one listener.
#[derive(Debug)]
pub(super) struct Peers {
    limits: Limits,
    table: Mutex<HashMap<PeerId, Peer>>,
    telling: Mutex<Bucket>,
}

/// A connection that a peer holds. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Seat {
    peers: Arc<Peers>,
    id: PeerId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(peer) = self.peers.table.lock().get_mut(&self.id) {
            peer.connections = peer.connections.saturating_sub(1);
        }
    }
}

impl Peers {
    pub(super) fn new(limits: Limits) -> Self {
        let telling = Mutex::new(Bucket { full_at: Instant::now() });
        Self { limits, table: Mutex::default(), telling }
    }

    fn with<T>(&self, id: PeerId, now: Instant, act: impl FnOnce(&mut Peer) -> T) -> T {
        let mut table = self.table.lock();
        if table.len() >= PEERS && !table.contains_key(&id) {
            let idle = table.iter().filter(|(_, peer)| peer.connections == 0);
            let oldest = idle.min_by_key(|(_, peer)| peer.seen_at).map(|(id, _)| *id);
            oldest.map(|id| table.remove(&id));
        }
        let peer = table.entry(id).or_insert_with(|| Peer {
            connections: 0,
            requests: Bucket { full_at: now },
            failures: Bucket { full_at: now },
            told_at: None,
            untold: 0,
            seen_at: now,
        });
        peer.seen_at = now;
        act(peer)
    }

    /// One more connection of `id`, unless it has as many as it may.
    pub(super) fn connect(self: &Arc<Self>, id: PeerId, now: Instant) -> Option<Seat> {
        let most = self.limits.connections;
        let has_room = self.with(id, now, |peer| {
            let has_room = peer.connections < most;
            peer.connections += u32::from(has_room);
            has_room
        });
        has_room.then(|| Seat { peers: Arc::clone(self), id })
    }

    /// Counts a request, or says how long to wait with it.
    pub(super) fn request(&self, id: PeerId, now: Instant) -> Result<(), Duration> {
        let rate = self.limits.requests;
        self.with(id, now, |peer| match peer.requests.wait(rate, now) {
            Some(wait) => Err(wait),
            None => {
                peer.requests.take(rate, now);
                Ok(())
            }
        })
    }

    /// How long nothing that `id` shows is looked at, because too much of it was wrong.
    pub(super) fn shut_out(&self, id: PeerId, now: Instant) -> Option<Duration> {
        self.with(id, now, |peer| peer.failures.wait(self.limits.failures, now))
    }

    /// Counts a failure. When it is to be told, how many were not told before.
    pub(super) fn fail(&self, id: PeerId, now: Instant) -> Option<u64> {
        let mut telling = self.telling.lock();
        self.with(id, now, |peer| {
            peer.failures.take(self.limits.failures, now);
            let is_recent = peer.told_at.is_some_and(|at| now.saturating_duration_since(at) < TELL_EVERY);
            if is_recent || telling.wait(TELL_RATE, now).is_some() {
                peer.untold += 1;
                return None;
            }
            telling.take(TELL_RATE, now);
            peer.told_at = Some(now);
            Some(std::mem::take(&mut peer.untold))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn peers() -> Arc<Peers> {
        let rate = Rate { burst: 3, every: SECOND };
        Arc::new(Peers::new(Limits { connections: 2, requests: rate, failures: rate }))
    }

    fn address(text: &str) -> PeerId {
        PeerId::address(text.parse().unwrap())
    }

    #[test]
    fn connections_are_bounded_for_each_peer_and_given_back() {
        let (peers, now) = (peers(), Instant::now());
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        let first = peers.connect(a, now).unwrap();
        let _second = peers.connect(a, now).unwrap();
        assert!(peers.connect(a, now).is_none());
        assert!(peers.connect(b, now).is_some());
        drop(first);
        assert!(peers.connect(a, now).is_some());
    }

    #[test]
    fn a_burst_is_answered_and_then_the_rate() {
        let (peers, now) = (peers(), Instant::now());
        let (a, b) = (address("10.0.0.1"), PeerId::User(0));
        for _ in 0..3 {
            peers.request(a, now).unwrap();
        }
        assert_eq!(peers.request(a, now), Err(SECOND));
        assert_eq!(peers.request(a, now + SECOND / 4), Err(SECOND * 3 / 4));
        peers.request(b, now).unwrap();
        peers.request(a, now + SECOND).unwrap();
        assert!(peers.request(a, now + SECOND).is_err());
        for _ in 0..3 {
            peers.request(a, now + SECOND * 60).unwrap();
        }
        assert!(peers.request(a, now + SECOND * 60).is_err());
    }

    #[test]
    fn who_fails_too_often_is_shut_out_for_a_while() {
        let (peers, now) = (peers(), Instant::now());
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        for _ in 0..3 {
            assert_eq!(peers.shut_out(a, now), None);
            peers.fail(a, now);
        }
        assert_eq!(peers.shut_out(a, now), Some(SECOND));
        assert_eq!(peers.shut_out(b, now), None);
        assert_eq!(peers.shut_out(a, now + SECOND), None);
    }

    #[test]
    fn a_failure_is_told_once_in_a_while_with_how_many_were_not() {
        let (peers, now) = (peers(), Instant::now());
        let a = address("10.0.0.1");
        assert_eq!(peers.fail(a, now), Some(0));
        assert_eq!((peers.fail(a, now), peers.fail(a, now + TELL_EVERY / 2)), (None, None));
        assert_eq!(peers.fail(a, now + TELL_EVERY), Some(2));
        assert_eq!(peers.fail(address("10.0.0.2"), now), Some(0));
    }

    #[test]
    fn many_peers_that_fail_are_not_many_events() {
        let (peers, now) = (peers(), Instant::now());
        let told = (0..1000).filter(|&n| peers.fail(PeerId::User(n), now).is_some()).count();
        assert_eq!(u32::try_from(told).unwrap(), TELL_RATE.burst);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_who_is_connected() {
        let (peers, now) = (peers(), Instant::now());
        let first = address("10.0.0.1");
        let _seat = peers.connect(first, now).unwrap();
        for n in 0..u32::try_from(PEERS).unwrap() * 2 {
            let _ = peers.request(PeerId::User(n), now + Duration::from_micros(n.into()));
        }
        assert_eq!(peers.table.lock().len(), PEERS);
        assert_eq!(peers.table.lock()[&first].connections, 1);
    }

    #[test]
    fn an_address_is_one_peer_however_it_is_written() {
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("2001:db8::1").to_string(), "2001:db8::/64");
        assert_eq!(address("::1").to_string(), "::1");
    }
}
