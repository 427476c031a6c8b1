//! Every key of the config: one table that the file, the environment, the flags, `--print-config` and the tests share.

use std::time::Duration;

use penstock_device::TransportError;

use super::{Key, OnStop, value};
use crate::{log::Format, mount::Flag};

/// Least room for chunks: a few hundred chunks of the largest size, below which eviction would fight with reads.
const LEAST_CAP_BYTES: u64 = 64 << 20;
/// Most room for chunks: 1 PiB, beyond any node's disk; a larger value is a slip of the unit.
const MOST_CAP_BYTES: u64 = 1 << 50;

/// Most bytes read ahead: a second of a link of 10 Gbit/s, beyond any use.
const MOST_READ_AHEAD_BYTES: u64 = 1 << 30;

/// Least memory: a quarter of it holds two of the largest requests to a registry.
const LEAST_MEMORY_BYTES: u64 = 32 << 20;
/// Most memory: what a link of 100 Gbit/s has under way in seconds; a larger value is a slip of the unit.
const MOST_MEMORY_BYTES: u64 = 64 << 30;

/// How long a pass of the background check may take: not so short that it does nothing else, not so long that it is none.
const SCRUB_INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(3600)..=Duration::from_secs(8760 * 3600);

/// All keys, in the order of `--print-config`.
pub static KEYS: &[Key] = &[
    Key {
        name: "state_dir",
        what: "directory of the agent's state: lock, attachments, FUSE files and, unless cache.dir says otherwise, the cache",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.state_dir = path),
        show: |config| Some(config.state_dir.display().to_string()),
    },
    Key {
        name: "socket",
        what: "unix socket of the admin API, mode 0600 unless socket_group is set",
        is_path: true,
        set: |config, text| value::socket_path(text).map(|path| config.socket = path),
        show: |config| Some(config.socket.display().to_string()),
    },
    Key {
        name: "socket_group",
        what: "group, by name or number, whose users may use the socket too; the mode is then 0660",
        is_path: false,
        set: |config, text| {
            config.socket_group = Some(text.to_owned());
            Ok(())
        },
        show: |config| config.socket_group.clone(),
    },
    Key {
        name: "listen",
        what: "address and port of the admin API over TCP, for reading only unless api.token_file or api.client_ca is set; none when not set",
        is_path: false,
        set: |config, text| value::address(text).map(|address| config.listen = Some(address)),
        show: |config| config.listen.map(|address| address.to_string()),
    },
    Key {
        name: "drain_deadline",
        what: "longest time that stopping may take, from 1s to 10m",
        is_path: false,
        set: |config, text| {
            value::duration_in(text, Duration::from_secs(1), Duration::from_secs(600))
                .map(|deadline| config.drain_deadline = deadline)
        },
        show: |config| Some(value::show_duration(config.drain_deadline)),
    },
    Key {
        name: "on_stop",
        what: "what becomes of devices at SIGTERM: leave (those that outlive the agent wait for the next one) or detach (none stays)",
        is_path: false,
        set: |config, text| text.parse().map(|on_stop: OnStop| config.on_stop = on_stop),
        show: |config| Some(config.on_stop.name().to_owned()),
    },
    Key {
        name: "api.token_file",
        what: "file with a token on each line, one of which opens the API over TCP; mode 0600 or 0640",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.api_token_file = Some(path)),
        show: |config| config.api_token_file.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "api.tls_cert",
        what: "PEM file of the certificate, with its chain, that is shown over TCP",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.api_tls_cert = Some(path)),
        show: |config| config.api_tls_cert.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "api.tls_key",
        what: "PEM file of its key; mode 0600 or 0640",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.api_tls_key = Some(path)),
        show: |config| config.api_tls_key.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "api.client_ca",
        what: "PEM file of the authorities of which a client certificate opens the API over TCP",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.api_client_ca = Some(path)),
        show: |config| config.api_client_ca.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "api.plain_token",
        what: "true takes tokens beyond loopback without TLS, because something else encrypts",
        is_path: false,
        set: |config, text| value::truth(text).map(|plain| config.api_plain_token = plain),
        show: |config| Some(config.api_plain_token.to_string()),
    },
    Key {
        name: "cache.dir",
        what: "directory of cached chunks; <state_dir>/cache when not set",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.cache_dir = Some(path)),
        show: |config| config.cache_dir.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "cache.cap",
        what: "most disk space for everything kept of images (chunks, index, maps), from 64MiB",
        is_path: false,
        set: |config, text| {
            value::size_in(text, LEAST_CAP_BYTES, MOST_CAP_BYTES).map(|bytes| config.cache_cap_bytes = bytes)
        },
        show: |config| Some(value::show_size(config.cache_cap_bytes)),
    },
    Key {
        name: "cache.watermarks",
        what: "where eviction in the background begins and ends, in percent of the room there is",
        is_path: false,
        set: |config, text| value::watermarks(text).map(|marks| config.cache_watermarks = marks),
        show: |config| Some(format!("{}%,{}%", config.cache_watermarks.high(), config.cache_watermarks.low())),
    },
    Key {
        name: "cache.reserve",
        what: "what stays free of the cache's file system: below it nothing is stored and chunks are evicted; 1GiB, or 5% if that is less, when not set",
        is_path: false,
        set: |config, text| value::size(text).map(|bytes| config.cache_reserve_bytes = Some(bytes)),
        show: |config| config.cache_reserve_bytes.map(value::show_size),
    },
    Key {
        name: "cache.scrub_interval",
        what: "how long it may take to read all cached chunks again in the background, from 1h to 8760h; 0s for never",
        is_path: false,
        set: |config, text| {
            value::duration(text)
                .ok()
                .filter(|interval| *interval == Duration::ZERO || SCRUB_INTERVALS.contains(interval))
                .map(|interval| config.cache_scrub_interval = interval)
                .ok_or_else(|| format!("{text:?} is neither 0s nor between 1h and 8760h"))
        },
        show: |config| Some(value::show_duration(config.cache_scrub_interval)),
    },
    Key {
        name: "cache.read_ahead",
        what: "most bytes under way that nobody asked for yet, up to 1GiB; 0 for no reading ahead",
        is_path: false,
        set: |config, text| {
            value::size_in(text, 0, MOST_READ_AHEAD_BYTES).map(|bytes| config.cache_read_ahead_bytes = bytes)
        },
        show: |config| Some(value::show_size(config.cache_read_ahead_bytes)),
    },
    Key {
        name: "cache.keep_pages",
        what: "true leaves what was read in the page cache below the devices, for readers that go past the page cache above them, as most virtual machines do (O_DIRECT)",
        is_path: false,
        set: |config, text| value::truth(text).map(|keep| config.cache_keep_pages = keep),
        show: |config| Some(config.cache_keep_pages.to_string()),
    },
    Key {
        name: "cache.chunk_size",
        what: "unit of fetching and keeping: a power of two from 64KiB to 4MiB; blobs already cached keep theirs",
        is_path: false,
        set: |config, text| {
            let size = penstock_blob::ChunkSize::new(value::size(text)?).map_err(|error| error.to_string())?;
            config.chunk_size = size;
            Ok(())
        },
        show: |config| Some(value::show_size(u64::from(config.chunk_size.bytes()))),
    },
    Key {
        name: "fetch.deadline",
        what: "longest time that one fetch may take with all its retries, from 1s to 10m",
        is_path: false,
        set: |config, text| {
            value::duration_in(text, Duration::from_secs(1), Duration::from_secs(600))
                .map(|deadline| config.fetch_deadline = deadline)
        },
        show: |config| Some(value::show_duration(config.fetch_deadline)),
    },
    Key {
        name: "fetch.bytes_in_flight",
        what: "most bytes asked of registries at once, from 4MiB to 16GiB",
        is_path: false,
        set: |config, text| value::size_in(text, 4 << 20, 16 << 30).map(|bytes| config.fetch_bytes_in_flight = bytes),
        show: |config| Some(value::show_size(config.fetch_bytes_in_flight)),
    },
    Key {
        name: "fetch.requests_in_flight",
        what: "most requests to registries at once, from 1 to 1024",
        is_path: false,
        set: |config, text| value::count_in(text, 1, 1024).map(|count| config.fetch_requests_in_flight = count),
        show: |config| Some(config.fetch_requests_in_flight.to_string()),
    },
    Key {
        name: "fetch.ca_bundle",
        what: "PEM file of certificate authorities trusted besides the system's",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.ca_bundle = Some(path)),
        show: |config| config.ca_bundle.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "fetch.hosts_dirs",
        what: "directories that say whom to ask for the content of registries, as containerd's config_path: certs.d with hosts.toml files; several with colons or commas, none when empty",
        is_path: false,
        set: |config, text| value::paths(text).map(|paths| config.hosts_dirs = paths),
        show: |config| {
            let paths: Vec<_> = config.hosts_dirs.iter().map(|path| path.display().to_string()).collect();
            Some(paths.join(":"))
        },
    },
    Key {
        name: "fetch.redirects_allowed",
        what: "hosts, addresses and networks (minio.lan, 10.0.0.0/8) that a redirect may lead to although they are further in than the registry: private, loopback or link-local",
        is_path: false,
        set: |config, text| {
            config.redirects_allowed = value::words(text);
            Ok(())
        },
        show: |config| (!config.redirects_allowed.is_empty()).then(|| config.redirects_allowed.join(",")),
    },
    Key {
        name: "fetch.plain_http",
        what: "registries (host or host:port) asked over plain HTTP; loopback always is, unless fetch.tls names it",
        is_path: false,
        set: |config, text| {
            config.plain_http = value::words(text);
            Ok(())
        },
        show: |config| (!config.plain_http.is_empty()).then(|| config.plain_http.join(",")),
    },
    Key {
        name: "fetch.tls",
        what: "loopback registries (host or host:port) asked over TLS",
        is_path: false,
        set: |config, text| {
            config.tls = value::words(text);
            Ok(())
        },
        show: |config| (!config.tls.is_empty()).then(|| config.tls.join(",")),
    },
    Key {
        name: "fetch.proxy",
        what: "proxy for registries that are not on loopback, as http://[user:password@]host:port; $HTTPS_PROXY when not set",
        is_path: false,
        set: |config, text| {
            config.proxy = Some(text.to_owned());
            Ok(())
        },
        show: |config| config.proxy.as_deref().map(value::without_password),
    },
    Key {
        name: "fetch.no_proxy",
        what: "hosts asked without the proxy; $NO_PROXY when not set",
        is_path: false,
        set: |config, text| {
            config.no_proxy = Some(value::words(text).join(","));
            Ok(())
        },
        show: |config| config.no_proxy.clone(),
    },
    Key {
        name: "fetch.docker_config",
        what: "Docker's config.json with credentials; $DOCKER_CONFIG/config.json or ~/.docker/config.json when not set",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.docker_config = Some(path)),
        show: |config| config.docker_config.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "fetch.platform",
        what: "platform taken from an image index, such as linux/arm64; this machine's when not set",
        is_path: false,
        set: |config, text| {
            text.parse().map(|platform| config.platform = platform).map_err(|error| format!("{text:?}: {error}"))
        },
        show: |config| Some(config.platform.to_string()),
    },
    Key {
        name: "credentials.file",
        what: "file of Penstock's own with credentials, mode 0600 or 0640; read whenever it is needed",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.credentials.file = Some(path)),
        show: |config| config.credentials.file.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "credentials.kubelet_config",
        what: "the kubelet's CredentialProviderConfig, YAML or JSON; its plugins are asked as the kubelet asks them",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.credentials.kubelet_config = Some(path)),
        show: |config| config.credentials.kubelet_config.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "credentials.kubelet_bin_dir",
        what: "directory of the kubelet's credential provider plugins",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.credentials.kubelet_bin_dir = Some(path)),
        show: |config| config.credentials.kubelet_bin_dir.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "credentials.secret_dirs",
        what: "directories where Kubernetes secrets with registry credentials are mounted",
        is_path: false,
        set: |config, text| {
            let dirs: Result<_, String> = value::words(text).iter().map(|dir| value::absolute(dir)).collect();
            config.credentials.secret_dirs = dirs?;
            Ok(())
        },
        show: |config| {
            let dirs: Vec<_> = config.credentials.secret_dirs.iter().map(|dir| dir.display().to_string()).collect();
            (!dirs.is_empty()).then(|| dirs.join(","))
        },
    },
    Key {
        name: "credentials.timeout",
        what: "longest time that a credential helper or plugin may take, from 1s to 1m",
        is_path: false,
        set: |config, text| {
            value::duration_in(text, Duration::from_secs(1), Duration::from_secs(60))
                .map(|timeout| config.credentials.timeout = timeout)
        },
        show: |config| Some(value::show_duration(config.credentials.timeout)),
    },
    Key {
        name: "credentials.keep",
        what: "whether credentials handed over by API outlive a restart of the agent: memory (until the reboot, beside the socket, never on a disk) or no",
        is_path: false,
        set: |config, text| text.parse().map(|keep| config.credentials.keep = keep),
        show: |config| Some(config.credentials.keep.name().to_owned()),
    },
    Key {
        name: "memory.budget",
        what: "memory for all indexes and buffers, from 32MiB to 64GiB",
        is_path: false,
        set: |config, text| {
            value::size_in(text, LEAST_MEMORY_BYTES, MOST_MEMORY_BYTES).map(|bytes| config.memory_budget_bytes = bytes)
        },
        show: |config| Some(value::show_size(config.memory_budget_bytes)),
    },
    Key {
        name: "verify.require",
        what: "true refuses every image that has no index (see penstock index); false verifies by an index where there is one",
        is_path: false,
        set: |config, text| value::truth(text).map(|require| config.verify_require = require),
        show: |config| Some(config.verify_require.to_string()),
    },
    Key {
        name: "verify.deadline",
        what: "longest time that looking for an image's index may hold up its attach, from 100ms to 1m",
        is_path: false,
        set: |config, text| {
            value::duration_in(text, Duration::from_millis(100), Duration::from_secs(60))
                .map(|deadline| config.verify_deadline = deadline)
        },
        show: |config| Some(value::show_duration(config.verify_deadline)),
    },
    Key {
        name: "recordings.enable",
        what: "whether what each image reads while starting is written down on this node",
        is_path: false,
        set: |config, text| value::truth(text).map(|enable| config.recordings_enable = enable),
        show: |config| Some(config.recordings_enable.to_string()),
    },
    Key {
        name: "recordings.duration",
        what: "how long a start is recorded, from its first read, from 1s to 10m",
        is_path: false,
        set: |config, text| {
            value::duration_in(text, Duration::from_secs(1), Duration::from_secs(600))
                .map(|duration| config.recordings_duration = duration)
        },
        show: |config| Some(value::show_duration(config.recordings_duration)),
    },
    Key {
        name: "recordings.replay",
        what: "whether an image is read along its recording, ahead of its program",
        is_path: false,
        set: |config, text| value::truth(text).map(|replay| config.recordings_replay = replay),
        show: |config| Some(config.recordings_replay.to_string()),
    },
    Key {
        name: "recordings.accept",
        what: "whose recordings are used besides this node's own: all (of the registry that an image is from), none, or registries with commas between",
        is_path: false,
        set: |config, text| text.parse().map(|accept| config.recordings_accept = accept),
        show: |config| Some(config.recordings_accept.to_string()),
    },
    Key {
        name: "recordings.fills",
        what: "how many images that are read widely are completed in the background at the same time, up to 64; 0: none ever",
        is_path: false,
        set: |config, text| value::count_in(text, 0, 64).map(|fills| config.recordings_fills = fills),
        show: |config| Some(config.recordings_fills.to_string()),
    },
    Key {
        name: "layers.prefer",
        what: "in which ways ordinary layers are read on demand, the best first: of own (indexed by this node), toc (eStargz, zstd:chunked), soci and pushed (an index beside the image); what is left out is not done, with none all are unpacked",
        is_path: false,
        set: |config, text| text.parse().map(|prefer| config.layers_prefer = prefer),
        show: |config| Some(config.layers_prefer.to_string()),
    },
    Key {
        name: "layers.accept",
        what: "whose indexes of ordinary layers are believed besides this node's own: none, all (of the registry that an image is from), or registries with commas between",
        is_path: false,
        set: |config, text| text.parse().map(|accept| config.layers_accept = accept),
        show: |config| Some(config.layers_accept.to_string()),
    },
    Key {
        name: "layers.key",
        what: "PEM file of the public key (ECDSA P-256, as cosign's) by which they must be signed, too; not asked for when not set",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.layers_key = Some(path)),
        show: |config| config.layers_key.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "layers.index_pulled",
        what: "what becomes of an ordinary image that containerd pulls without indexes of its layers: no, keep (they are made in the background, from what containerd has fetched: its next pull here is lazy) or push (also beside the image)",
        is_path: false,
        set: |config, text| text.parse().map(|index| config.layers_index_pulled = index),
        show: |config| Some(config.layers_index_pulled.name().to_owned()),
    },
    Key {
        name: "layers.soci_v1",
        what: "true believes SOCI indexes of version 1, which anybody who may push to an image's repository can add; those that an image's manifest names (version 2) are always used",
        is_path: false,
        set: |config, text| value::truth(text).map(|soci| config.layers_soci_v1 = soci),
        show: |config| Some(config.layers_soci_v1.to_string()),
    },
    Key {
        name: "device.transport",
        what: "how devices are shown to the kernel: auto (ublk where it can be used, else fuse), ublk or fuse",
        is_path: false,
        set: |config, text| {
            text.parse().map(|wanted| config.transport = wanted).map_err(|error: TransportError| error.to_string())
        },
        show: |config| Some(config.transport.to_string()),
    },
    Key {
        name: "device.deadline",
        what: "longest time that a reader waits for a fetch before device.on_failure, from 1s to 10m; fetch.deadline when not set",
        is_path: false,
        set: |config, text| {
            value::duration_in(text, Duration::from_secs(1), Duration::from_secs(600))
                .map(|deadline| config.device_deadline = Some(deadline))
        },
        show: |config| config.device_deadline.map(value::show_duration),
    },
    Key {
        name: "device.on_failure",
        what: "what a reader gets then, unless its device was attached or set otherwise: eio, or wait (fetching is tried on)",
        is_path: false,
        set: |config, text| value::on_failure(text).map(|on_failure| config.on_failure = on_failure),
        show: |config| Some(value::show_on_failure(config.on_failure).to_owned()),
    },
    Key {
        name: "device.wait_limit",
        what: "longest time that a reader waits in all where it waits, then an I/O error, from 1s to 24h",
        is_path: false,
        set: |config, text| {
            value::duration_in(text, Duration::from_secs(1), Duration::from_secs(86_400))
                .map(|limit| config.wait_limit = limit)
        },
        show: |config| Some(value::show_duration(config.wait_limit)),
    },
    Key {
        name: "mount.flags",
        what: "flags of mounts besides ro: any of nodev, nosuid, noexec, noatime, nosymfollow",
        is_path: false,
        set: |config, text| {
            let flags: Result<Vec<Flag>, String> = value::words(text).iter().map(|word| word.parse()).collect();
            config.mount_flags = flags?;
            Ok(())
        },
        show: |config| Some(config.mount_flags.iter().map(Flag::name).collect::<Vec<_>>().join(",")),
    },
    Key {
        name: "snapshotter.enable",
        what: "true serves containerd: its snapshots, and the image service on images.socket",
        is_path: false,
        set: |config, text| value::truth(text).map(|enable| config.snapshotter_enable = enable),
        show: |config| Some(config.snapshotter_enable.to_string()),
    },
    Key {
        name: "snapshotter.root",
        what: "directory of containerd's snapshots; containerd 1.6 counts their disk use only at the default",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.snapshotter_root = path),
        show: |config| Some(config.snapshotter_root.display().to_string()),
    },
    Key {
        name: "snapshotter.socket",
        what: "unix socket on which containerd finds its snapshots, mode 0600",
        is_path: true,
        set: |config, text| value::socket_path(text).map(|path| config.snapshotter_socket = path),
        show: |config| Some(config.snapshotter_socket.display().to_string()),
    },
    Key {
        name: "images.socket",
        what: "unix socket of the image service, mode 0600, for the kubelet's --image-service-endpoint",
        is_path: true,
        set: |config, text| value::socket_path(text).map(|path| config.images_socket = path),
        show: |config| Some(config.images_socket.display().to_string()),
    },
    Key {
        name: "images.containerd",
        what: "containerd's own socket, which the image service is forwarded to",
        is_path: true,
        set: |config, text| value::socket_path(text).map(|path| config.images_containerd = path),
        show: |config| Some(config.images_containerd.display().to_string()),
    },
    Key {
        name: "traces.endpoint",
        what: "collector of OpenTelemetry traces (OTLP over HTTP), such as http://127.0.0.1:4318; none when not set",
        is_path: false,
        set: |config, text| value::web_address(text).map(|url| config.traces.endpoint = Some(url)),
        show: |config| config.traces.endpoint.clone(),
    },
    Key {
        name: "traces.slow",
        what: "how long a read or a fetch takes of which a span is sent, up to 10m; 0s for all of them",
        is_path: false,
        set: |config, text| {
            value::duration_in(text, Duration::ZERO, Duration::from_secs(600)).map(|slow| config.traces.slow = slow)
        },
        show: |config| Some(value::show_duration(config.traces.slow)),
    },
    Key {
        name: "traces.plain",
        what: "true sends spans beyond loopback without TLS, because something else encrypts",
        is_path: false,
        set: |config, text| value::truth(text).map(|plain| config.traces.plain = plain),
        show: |config| Some(config.traces.plain.to_string()),
    },
    Key {
        name: "traces.ca",
        what: "PEM file of the authorities that the collector's certificate may be of; the system's when not set",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.traces.ca = Some(path)),
        show: |config| config.traces.ca.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "traces.token_file",
        what: "file with the token that the collector is shown (Authorization: Bearer); mode 0600 or 0640",
        is_path: true,
        set: |config, text| value::absolute(text).map(|path| config.traces.token_file = Some(path)),
        show: |config| config.traces.token_file.as_ref().map(|path| path.display().to_string()),
    },
    Key {
        name: "log.format",
        what: "log lines as human or json, on standard error",
        is_path: false,
        set: |config, text| text.parse().map(|format: Format| config.log_format = format),
        show: |config| Some(config.log_format.name().to_owned()),
    },
    Key {
        name: "log.level",
        what: "least severity logged: error, warn, info, debug or trace; other libraries log from warn on",
        is_path: false,
        set: |config, text| {
            text.parse()
                .map(|level| config.log_level = level)
                .map_err(|_| format!("{text:?} is not a level; write error, warn, info, debug or trace"))
        },
        show: |config| Some(config.log_level.to_string().to_lowercase()),
    },
];
