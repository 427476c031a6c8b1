//! Debian's `nginx` in front of a registry: TLS, passwords, and an address that stays while what is behind it comes and goes.

use std::{
    fs,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{
        AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with,
        sockopt::{set_socket_reuseaddr, set_socket_reuseport},
    },
    process::Signal,
};

use crate::{process::Process, tls::Certificate};

/// It is up at once; a machine under load takes more.
const START: Duration = Duration::from_secs(60);
/// Connections that wait to be accepted, as nginx itself has it.
const BACKLOG: i32 = 511;

/// What nginx shows and asks for.
#[derive(Debug, Clone, Default)]
pub struct Front {
    /// Its certificate; plain HTTP without one.
    pub tls: Option<Certificate>,
    /// Whether it speaks HTTP/2 besides, over TLS.
    pub http2: bool,
    /// Who may use it, with basic authentication; anybody without one.
    pub user: Option<(String, String)>,
    /// Where `/token` goes, if anywhere: `address:port`.
    pub tokens: Option<String>,
}

/// A running or stopped nginx, always at the same address.
#[derive(Debug)]
pub struct Nginx {
    dir: PathBuf,
    address: SocketAddr,
    /// Bound to the address and never listening: while nginx is stopped its port is refused, and nobody else is given it.
    _reserved: OwnedFd,
    front: Front,
    process: Option<Process>,
}

impl Nginx {
    /// Starts it before `upstream` (`address:port`, plain HTTP), with its files in `dir`.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(dir: PathBuf, upstream: &str, front: &Front) -> Self {
        fs::create_dir_all(&dir).expect("a directory");
        let reserved = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = getsockname(&reserved).expect("an address").try_into().expect("an address of the internet");
        let mut this = Self { dir, address, _reserved: reserved, front: front.clone(), process: None };
        this.configure(upstream);
        this.run();
        this
    }

    fn configure(&self, upstream: &str) {
        let text = config(&self.dir, self.address, upstream, &self.front);
        fs::write(self.dir.join("nginx.conf"), text).expect("nginx's config");
    }

    /// Stands before another registry from now on.
    ///
    /// # Panics
    /// As [`Self::restart`].
    pub fn lead_to(&mut self, upstream: &str) {
        self.configure(upstream);
        self.restart();
    }

    /// Hands the listening socket over, as nginx does to its own successor (variable `NGINX`): the port is never free for others.
    fn run(&mut self) {
        let listener = bound(self.address);
        listen(&listener, BACKLOG).expect("a port that is ours");
        fcntl_setfd(&listener, FdFlags::empty()).expect("a descriptor's flags");
        let mut command = Command::new("nginx");
        command.arg("-c").arg(self.dir.join("nginx.conf")).arg("-p").arg(&self.dir);
        let process = Process::start("nginx", command.env("NGINX", format!("{};", listener.as_raw_fd())));
        drop(listener);
        let up = process.wait_for(START, START, |lines| lines.iter().any(|l| l.contains("start worker")).then_some(()));
        assert!(up.is_some(), "nginx does not start: {:?}", process.lines());
        self.process = Some(process);
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Stops it: connections are refused from now on.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::TERM);
            assert!(process.wait(START).is_some(), "nginx does not stop");
        }
    }

    /// Starts it again where it was.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.stop();
        self.run();
    }

    /// The requests it answered, one line each.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // With SIGKILL alone the worker would stay.
        if let Some(process) = &mut self.process {
            process.signal(Signal::TERM);
            let _ = process.wait(START);
        }
    }
}

/// A socket with this address, which others of this user may have, too, who also say so.
fn bound(address: SocketAddr) -> OwnedFd {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
    set_socket_reuseaddr(&socket, true).expect("an option of a socket");
    set_socket_reuseport(&socket, true).expect("an option of a socket");
    bind(&socket, &address).expect("a port");
    socket
}

fn config(dir: &Path, address: SocketAddr, upstream: &str, front: &Front) -> String {
    let dir = dir.display();
    let tls = front.tls.as_ref().map_or_else(String::new, |tls| {
        format!("ssl_certificate {}; ssl_certificate_key {};", tls.certificate.display(), tls.key.display())
    });
    let user = front.user.as_ref().map_or_else(String::new, |(name, password)| {
        let file = Path::new(&dir.to_string()).join("users");
        fs::write(&file, format!("{name}:{{PLAIN}}{password}\n")).expect("a file");
        format!("auth_basic registry; auth_basic_user_file {};", file.display())
    });
    let tokens = front.tokens.as_ref().map_or_else(String::new, |to| {
        format!("location /token {{ proxy_pass http://{to}; proxy_set_header Authorization $http_authorization; }}")
    });
    let tls_flag = if front.tls.is_some() { " ssl" } else { "" };
    let listen = format!("{address}{tls_flag}{}", if front.http2 { " http2" } else { "" });
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/{kind}; "))
        .concat();
    format!(
        "daemon off; master_process on; worker_processes 1; pid {dir}/pid; error_log stderr notice;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log {dir}/access.log; {temporary}\n\
         server {{ listen {listen}; {tls} client_max_body_size 0; proxy_buffering off; proxy_request_buffering off;\n\
         proxy_read_timeout 600s;\n\
         {tokens}\n\
         location / {{ {user} proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Host $http_host;\n\
         proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header Connection \"\"; }} }} }}\n"
    )
}
