//! Which addresses a server may send us to: by where they are, not by what they are called. Pure and total.
//!
//! A registry that we ask can be led to tell us an address of its choice: a redirect, or the realm of a token server. Followed
//! blindly, that lets somebody outside make the node ask its cloud's metadata service, or services that only trust the node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Zone {
    /// This machine.
    Loopback,
    /// A network of ours: RFC 1918, RFC 6598 (100.64.0.0/10), RFC 4193 (fc00::/7).
    Private,
    /// The internet.
    Public,
    /// Link-local addresses, metadata services of clouds wherever they are, multicast, broadcast, reserved: nothing there is a
    /// registry.
    Forbidden,
}

/// Metadata services outside the link-local range: AWS over IPv6 (fd00:ec2::254), Alibaba, Oracle, Azure's wire server.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254);
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];

impl Zone {
    /// Where `address` is. IPv6 forms that carry an IPv4 address are where that one is.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => carried(v6).map_or_else(|| Self::of_v6(v6), Self::of_v4),
        }
    }

    fn of_v4(v4: Ipv4Addr) -> Self {
        let [a, b, ..] = v4.octets();
        match (a, b) {
            _ if METADATA_V4.contains(&v4) => Self::Forbidden,
            (169, 254) | (224..=255, _) => Self::Forbidden,
            // 0.0.0.0 reaches this machine on Linux.
            (127 | 0, _) => Self::Loopback,
            (10, _) | (172, 16..=31) | (192, 168) | (100, 64..=127) => Self::Private,
            _ => Self::Public,
        }
    }

    fn of_v6(v6: Ipv6Addr) -> Self {
        let [first, ..] = v6.segments();
        match first {
            _ if v6 == METADATA_V6 => Self::Forbidden,
            _ if v6.is_loopback() || v6.is_unspecified() => Self::Loopback,
            0xfe80..=0xffff => Self::Forbidden,
            0xfc00..=0xfdff => Self::Private,
            _ => Self::Public,
        }
    }

    /// Whether a server here may send us there: never to a forbidden address, else not further in than it is itself.
    pub(crate) const fn may_send_to(self, to: Self) -> bool {
        match (self, to) {
            (_, Self::Forbidden) => false,
            (Self::Loopback, _) | (_, Self::Public) => true,
            // Whoever configured a registry on a link-local address trusts it like one of his own network.
            (Self::Private | Self::Forbidden, Self::Private) => true,
            (Self::Private | Self::Public | Self::Forbidden, _) => false,
        }
    }

    /// As shown in errors.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "a loopback address",
            Self::Private => "a private address",
            Self::Public => "a public address",
            Self::Forbidden => "a link-local or metadata address",
        }
    }
}

/// The IPv4 address in an IPv6 one: mapped (::ffff:0:0/96), compatible (::/96), NAT64 (64:ff9b::/96), 6to4 (2002::/16).
fn carried(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let four = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => four(g, h),
        // ::1 and :: are addresses of their own.
        [0, 0, 0, 0, 0, 0] if g != 0 => four(g, h),
        [0x2002, ..] => four(b, c),
        _ => None,
    }
}

/// What redirects may lead to although their zone says no: hosts by name, and networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    hosts: Vec<String>,
    networks: Vec<(IpAddr, u8)>,
}

impl Allowed {
    /// Reads a list of host names, addresses and networks (`10.0.0.0/8`).
    ///
    /// # Errors
    /// The first entry that is none of these.
    pub(crate) fn parse(entries: &[String]) -> Result<Self, String> {
        let mut allowed = Self::default();
        for entry in entries {
            let (address, bits) = entry.split_once('/').map_or((entry.as_str(), None), |(a, b)| (a, Some(b)));
            match (address.parse::<IpAddr>(), bits) {
                (Ok(address), bits) => {
                    let most = if address.is_ipv4() { 32 } else { 128 };
                    let bits = bits.map_or(Ok(most), str::parse).ok().filter(|bits| *bits <= most);
                    allowed.networks.push((address, bits.ok_or_else(|| entry.clone())?));
                }
                (Err(_), None) if is_name(entry) => allowed.hosts.push(entry.to_ascii_lowercase()),
                (Err(_), _) => return Err(entry.clone()),
            }
        }
        Ok(allowed)
    }

    /// Whether the host is named.
    pub(crate) fn host(&self, name: &str) -> bool {
        self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
    }

    /// Whether the address lies in a network that is named.
    pub(crate) fn address(&self, address: IpAddr) -> bool {
        let address = match address {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
            IpAddr::V4(_) => address,
        };
        self.networks.iter().any(|(network, bits)| match (network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(*bits)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(*bits)
            }
            _ => false,
        })
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_address_is_where_the_address_is() {
        for (text, zone) in [
            ("127.0.0.1", Zone::Loopback),
            ("127.9.9.9", Zone::Loopback),
            ("0.0.0.0", Zone::Loopback),
            ("::1", Zone::Loopback),
            ("::", Zone::Loopback),
            ("::ffff:127.0.0.1", Zone::Loopback),
            ("64:ff9b::7f00:1", Zone::Loopback),
            ("10.1.2.3", Zone::Private),
            ("172.16.0.1", Zone::Private),
            ("172.32.0.1", Zone::Public),
            ("192.168.1.1", Zone::Private),
            ("100.64.0.1", Zone::Private),
            ("fd12::1", Zone::Private),
            ("::ffff:10.0.0.1", Zone::Private),
            ("2002:0a00:0001::1", Zone::Private),
            ("1.1.1.1", Zone::Public),
            ("2606:4700::1111", Zone::Public),
            ("169.254.169.254", Zone::Forbidden),
            ("169.254.0.1", Zone::Forbidden),
            ("::ffff:169.254.169.254", Zone::Forbidden),
            ("::169.254.169.254", Zone::Forbidden),
            ("64:ff9b::a9fe:a9fe", Zone::Forbidden),
            ("2002:a9fe:a9fe::1", Zone::Forbidden),
            ("fe80::1", Zone::Forbidden),
            ("febf::1", Zone::Forbidden),
            ("fd00:ec2::254", Zone::Forbidden),
            ("100.100.100.200", Zone::Forbidden),
            ("168.63.129.16", Zone::Forbidden),
            ("224.0.0.1", Zone::Forbidden),
            ("255.255.255.255", Zone::Forbidden),
            ("ff02::1", Zone::Forbidden),
        ] {
            assert_eq!(Zone::of(text.parse().unwrap()), zone, "{text}");
        }
    }

    #[test]
    fn nobody_sends_us_further_in_than_he_is() {
        use Zone::{Forbidden, Loopback, Private, Public};
        for (from, to, may) in [
            (Public, Public, true),
            (Public, Private, false),
            (Public, Loopback, false),
            (Private, Public, true),
            (Private, Private, true),
            (Private, Loopback, false),
            (Loopback, Loopback, true),
            (Loopback, Private, true),
            (Loopback, Public, true),
            (Loopback, Forbidden, false),
            (Private, Forbidden, false),
            (Public, Forbidden, false),
            (Forbidden, Forbidden, false),
            (Forbidden, Public, true),
        ] {
            assert_eq!(from.may_send_to(to), may, "{from:?} -> {to:?}");
        }
    }

    #[test]
    fn allowed_networks_and_hosts_are_read_and_others_refused() {
        let list = |entries: &[&str]| Allowed::parse(&entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>());
        let allowed = list(&["10.0.0.0/8", "169.254.20.10", "fd00::/16", "Minio.lan"]).unwrap();
        for (address, is) in [
            ("10.200.1.1", true),
            ("11.0.0.1", false),
            ("169.254.20.10", true),
            ("169.254.20.11", false),
            ("::ffff:10.1.1.1", true),
            ("fd00:1::1", true),
            ("fd01::1", false),
        ] {
            assert_eq!(allowed.address(address.parse().unwrap()), is, "{address}");
        }
        assert!(allowed.host("minio.LAN") && !allowed.host("lan"));
        assert!(list(&["0.0.0.0/0"]).unwrap().address("9.9.9.9".parse().unwrap()));
        for bad in ["10.0.0.0/33", "10.0.0.0/x", "a b", "", "x/8", "https://minio.lan"] {
            assert_eq!(list(&[bad]), Err(bad.to_owned()));
        }
    }
}
