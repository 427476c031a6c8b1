//! A headless Chromium, driven by its DevTools protocol over a pair of pipes: no port, no driver, no web socket.
//!
//! Protocol: <https://chromedevtools.github.io/devtools-protocol/>. With `--remote-debugging-pipe` the browser reads JSON messages, each ended by
//! a NUL, from descriptor 3 and writes them to descriptor 4.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::Command,
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{process::Process, workdir::Workdir};

/// The program, of the Debian package of the same name.
pub const PROGRAM: &str = "chromium-headless-shell";
/// Nothing that a page does here takes longer; beyond it the page hangs, which is a finding.
const LIMIT: Duration = Duration::from_secs(120);
/// Messages kept until they are looked for.
const KEPT: usize = 10_000;

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    _process: Process,
    to: File,
    from: Receiver<Value>,
    session: String,
    next_id: u64,
    /// What came while something else was waited for.
    told: VecDeque<Value>,
}

impl Browser {
    /// Starts the browser with a profile of its own in `work`, and an empty page of 1280 by 900 pixels.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(work: &Workdir) -> Self {
        let profile = work.dir("browser");
        let (to, from) = (profile.join("to"), profile.join("from"));
        let both = Command::new("mkfifo").args([&to, &from]).status().expect("mkfifo");
        assert!(both.success());
        // Opened for both directions, a FIFO keeps nobody waiting.
        let open = |path: &Path| File::options().read(true).write(true).open(path).expect("a FIFO");
        let (to_file, from_file) = (open(&to), open(&from));
        let flags =
            ["--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"];
        let mut command = Command::new("sh");
        command.args(["-c", r#"to=$1 from=$2; shift 2; exec "$@" 3<"$to" 4>"$from""#, "sh"]).args([&to, &from]);
        command.arg(PROGRAM).args(flags).arg(format!("--user-data-dir={}", profile.join("profile").display()));
        let process = Process::start("the browser", command.arg("about:blank"));
        let (sender, from) = sync_channel(KEPT);
        thread::spawn(move || {
            for message in BufReader::new(from_file).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("the browser writes JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser =
            Self { _process: process, to: to_file, from, session: String::new(), next_id: 0, told: VecDeque::new() };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank", "width": 1280, "height": 900 }));
        let attached = browser.ask("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        attached["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable", "Accessibility.enable"] {
            browser.ask(domain, json!({}));
        }
        browser
    }

    /// Calls a method of the protocol and returns its result.
    ///
    /// # Panics
    /// When it fails.
    pub fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.next_id += 1;
        let id = self.next_id;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).expect("the browser reads");
        let deadline = Instant::now() + LIMIT;
        loop {
            let message = self.receive(deadline, method);
            if message["id"] != id {
                self.told.push_back(message);
                continue;
            }
            assert!(message.get("error").is_none(), "{method}: {}", message["error"]);
            return message["result"].clone();
        }
    }

    fn receive(&self, deadline: Instant, what: &str) -> Value {
        let left = deadline.saturating_duration_since(Instant::now());
        self.from.recv_timeout(left).unwrap_or_else(|_| panic!("the browser does not answer {what}"))
    }

    /// Goes to `url`.
    pub fn open(&mut self, url: &str) {
        let went = self.ask("Page.navigate", json!({ "url": url }));
        assert!(went.get("errorText").is_none(), "{url}: {}", went["errorText"]);
    }

    /// What an expression of JavaScript is, as JSON; a promise is awaited.
    ///
    /// # Panics
    /// When it throws.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.ask("Runtime.evaluate", parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true: the page itself looks, each time that its document changes.
    ///
    /// # Panics
    /// When it stays false; says what the page shows.
    pub fn until(&mut self, condition: &str) {
        let wait = format!(
            "new Promise((done) => {{
                const is = () => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }};
                if (is()) return done(true);
                const watch = new MutationObserver(() => is() && end(true));
                const late = setTimeout(() => end(false), {});
                const end = (how) => {{ watch.disconnect(); clearTimeout(late); done(how); }};
                watch.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
            }})",
            LIMIT.as_millis() / 2
        );
        if self.value(&wait) != true {
            let shown = self.value("document.body.innerText");
            panic!("never true: {condition}; the page shows {shown}; {:?}", self.complaints());
        }
    }

    /// Everything that went wrong in the page so far: exceptions, errors and warnings on the console, requests that failed or were blocked.
    pub fn complaints(&mut self) -> Vec<String> {
        self.told.extend(self.from.try_iter());
        let wrong = |message: &Value| match message["method"].as_str()? {
            "Runtime.exceptionThrown" => Some(message["params"]["exceptionDetails"].to_string()),
            "Runtime.consoleAPICalled" => Some(message["params"].to_string()),
            "Log.entryAdded" => Some(message["params"]["entry"].to_string()),
            _ => None,
        };
        self.told.iter().filter_map(wrong).collect()
    }

    /// Waits for the next message of this name.
    ///
    /// # Panics
    /// When it does not come.
    pub fn told(&mut self, method: &str) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.told.iter().position(|message| message["method"] == method) {
                return self.told.remove(at).map(|message| message["params"].clone()).unwrap_or_default();
            }
            let message = self.receive(deadline, method);
            self.told.push_back(message);
        }
    }

    /// Presses a key, such as `Tab`.
    pub fn press(&mut self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        let down = json!({ "type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
        self.ask("Input.dispatchKeyEvent", down);
        self.ask(
            "Input.dispatchKeyEvent",
            json!({ "type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": code }),
        );
    }

    /// What the page looks like, as PNG.
    pub fn picture(&mut self) -> Vec<u8> {
        let shot = self.ask("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }));
        BASE64_STANDARD.decode(shot["data"].as_str().expect("base64")).expect("base64")
    }
}
