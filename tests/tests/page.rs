//! The page of a node in a real browser, with a real agent behind it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use penstock_registry::Config;
use penstock_tests::{
    agent::{Agent, Place},
    axe,
    browser::{Browser, PROGRAM},
    fixture,
    loopback::Loopback,
    require,
    skip::{filesystem, fuse, loop_devices, program, root},
    tree,
    workdir::Workdir,
};

fn cannot() -> Option<String> {
    root().or_else(fuse).or_else(loop_devices).or_else(|| filesystem("ext4")).or_else(|| program(PROGRAM))
}

/// The page's address.
fn address(agent: &Agent) -> String {
    format!("http://{}/", agent.address())
}

fn complains_of_nothing(browser: &mut Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// A key as the DevTools protocol numbers it.
const TAB: (&str, u32) = ("Tab", 9);
const ENTER: (&str, u32) = ("Enter", 13);

#[test]
fn the_page_shows_what_happens_while_it_happens() {
    require!(cannot());
    let work = Workdir::new();
    let registry = Loopback::start(Config::default());
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let agent = Place::new(work.path()).reading_ahead().with(&["--listen", "127.0.0.1:0"]).start();
    let mut browser = Browser::start(&work);
    browser.open(&address(&agent));
    browser.until("document.querySelector('#link').textContent === 'live'");
    browser.until("document.querySelector('#shown').textContent === 'none'");

    let mount = work.dir("mount");
    let reference = format!("{}/fixtures/overlaybd:obd-lz4", registry.host());
    let mounted = ["--transport", "fuse", "--mount", mount.to_str().expect("UTF-8")];
    let id = agent.attach(&reference, &mounted)["id"].as_str().expect("an id").to_owned();
    browser.until(&format!("document.querySelector('#devices').innerText.includes('{reference}')"));
    browser.until("document.querySelector('#events').innerText.includes('device.attached')");

    // With the keyboard alone: into the filter, on to the device, and choose it.
    browser.value("document.querySelector('#filter').focus()");
    for _ in 0..20 {
        browser.press(TAB.0, TAB.1);
        if browser.value("document.activeElement.dataset.device ?? null") == id.as_str() {
            break;
        }
    }
    browser.press(ENTER.0, ENTER.1);
    browser.until("document.querySelectorAll('#map .blob').length === 3");
    tree::assert_same(&tree::read(&mount).expect("every file"), &fixture::tree());
    browser.until("[...document.querySelectorAll('#map p')].every((p) => !/, 0 read/.test(p.textContent))");
    browser.until("/\\d+ hits, [1-9]\\d* misses, 0 errors/.test(document.querySelector('#facts').innerText)");

    for (chart, line) in [("c-rate", "registries"), ("c-read", "origin")] {
        browser.until(&format!("document.querySelector('#{chart}').parentElement.innerText.includes('{line}')"));
    }

    browser.value("document.querySelector('#look').click()");
    browser.until("document.querySelectorAll('#images .layer').length === 3");
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("page.png"), browser.picture()).expect("a picture");

    assert_eq!(agent.run(&["detach", &id]).code, Some(0));
    browser
        .until("document.querySelector('#shown').textContent === 'none' && document.querySelector('#device').hidden");
    complains_of_nothing(&mut browser);
    assert!(agent.stop().success());
    browser.until("document.querySelector('#link').textContent.includes('asking again')");
}

#[test]
fn the_page_asks_for_a_token_and_shows_nothing_before() {
    require!(cannot());
    let work = Workdir::new();
    let token = work.join("token");
    fs::write(&token, "0123456789abcdef0123456789abcdef0123\n").expect("a file");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("a mode");
    let flags = ["--listen", "127.0.0.1:0", "--api-token-file", token.to_str().expect("UTF-8")];
    let agent = Place::new(work.path()).with(&flags).start();
    let mut browser = Browser::start(&work);
    browser.open(&address(&agent));
    let give = |browser: &mut Browser, token: &str| {
        browser.until("!document.querySelector('#door').hidden");
        browser.value(&format!("document.querySelector('#token').value = '{token}'"));
        browser.value("document.querySelector('#door').requestSubmit()");
    };
    give(&mut browser, "ffffffffffffffffffffffffffffffffffff");
    browser.until("document.querySelector('#link').textContent === 'a token is needed'");
    assert_eq!(browser.value("document.querySelector('#tiles').innerText"), "");
    give(&mut browser, "0123456789abcdef0123456789abcdef0123");
    browser.until("document.querySelector('#link').textContent === 'live'");
    browser.until("document.querySelector('#tiles').innerText.includes('ready')");
    assert_eq!(
        browser.value("JSON.stringify([localStorage.length, sessionStorage.length, document.cookie])"),
        "[0,0,\"\"]"
    );
    assert!(agent.stop().success());
}

/// Stands in for the agent's stream: `push(name, data)` tells the page something; `streams` counts how often it was asked for.
const STREAM: &str = r#"
const real = window.fetch;
window.streams = 0;
window.fetch = (path, how) => String(path).startsWith("/v1/live")
    ? Promise.resolve(new Response(new ReadableStream({ start(to) {
        window.streams += 1;
        window.push = (name, data) => to.enqueue(new TextEncoder().encode(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`));
    } })))
    : real(path, how);
window.row = (n, hits) => ({
    id: `d${n}`, state: "attached", state_reason: null, reference: `registry.example/app/${n % 40}:1`, owner: "snapshotter", transport: "ublk",
    size_bytes: 1e9, blob_bytes: 5e8, present_bytes: (n * 4e5) % 5e8, mount_point: `/run/containers/${n}`,
    stats: { requests: hits, bytes_served: hits * 4096, hits, misses: n % 7, errors: 0, in_flight: 0, bytes_fetched: n * 1000, waited_ms: n },
});
"#;

#[test]
fn a_thousand_devices_are_found_sorted_and_followed() {
    require!(cannot());
    let work = Workdir::new();
    let agent = Place::new(work.path()).reading_ahead().with(&["--listen", "127.0.0.1:0"]).start();
    let mut browser = Browser::start(&work);
    browser.ask("Page.addScriptToEvaluateOnNewDocument", serde_json::json!({ "source": STREAM }));
    browser.open(&address(&agent));
    browser.until("document.querySelector('#link').textContent === 'live'");
    browser.value(
        "for (let n = 0; n < 1000; n += 200) push('devices', { rows: Array.from({ length: 200 }, (_, at) => row(n + at, 1)), gone: [] })",
    );
    browser.until("document.querySelector('#shown').textContent === '1 to 50 of 1,000'");
    assert_eq!(
        browser.value("document.querySelectorAll('#devices tr').length"),
        50,
        "no more lines than can be looked at"
    );
    let first = "document.querySelector('#devices button').textContent";
    browser.value("document.querySelector('#after').click()");
    assert_eq!(browser.value(first), "d50");
    let sort = "[...document.querySelectorAll('#columns button')].find((b) => b.textContent === 'Waited').click()";
    browser.value(sort);
    browser.value(sort);
    assert_eq!(browser.value(first), "d999", "who waited longest comes first");
    for round in 2..12 {
        let all =
            format!("push('devices', {{ rows: Array.from({{ length: 1000 }}, (_, n) => row(n, {round})), gone: [] }})");
        browser.value(&all);
    }
    browser.value(
        "const f = document.querySelector('#filter'); f.value = 'containers/777'; f.dispatchEvent(new Event('input'))",
    );
    assert_eq!(browser.value("document.querySelector('#shown').textContent"), "1 to 1 of 1");
    browser.value("push('devices', { rows: [], gone: ['d777'] })");
    browser.until("document.querySelector('#shown').textContent === 'none'");
    complains_of_nothing(&mut browser);
    assert!(agent.stop().success());
}

/// What a person with a screen reader or poor sight would stumble over (WCAG 2.2: 1.1.1, 1.3.1, 1.4.3, 2.4.2, 3.1.1, 4.1.2), as sentences.
const STUMBLES: &str = r#"(() => {
    const found = [];
    const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const color = (text) => text.match(/[\d.]+/g).map(Number);
    const ground = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const all = color(getComputedStyle(at).backgroundColor);
            if (all.length < 4 || all[3] === 1) return all;
        }
        return [255, 255, 255];
    };
    for (const node of document.body.querySelectorAll("*")) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!own || node.tagName === "NOSCRIPT" || !node.checkVisibility() || node.disabled) continue;
        const [a, b] = [light(color(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) found.push(`${node.tagName} ${node.textContent.slice(0, 30)}: contrast ${(a + 0.05) / (b + 0.05)}`);
    }
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    found.push(...ids.filter((id, at) => ids.indexOf(id) !== at).map((id) => `two are called ${id}`));
    let level = 0;
    for (const head of document.querySelectorAll("h1, h2, h3, h4")) {
        const next = Number(head.tagName[1]);
        if (next > level + 1) found.push(`${head.textContent} leaves out a level`);
        level = next;
    }
    if (!document.title || !document.documentElement.lang) found.push("no title or language");
    return found;
})()"#;

/// Roles that mean nothing without a name.
const NAMED: [&str; 7] = ["button", "textbox", "searchbox", "image", "region", "columnheader", "link"];

/// A page that shows two devices, and of one of them its blocks.
fn with_two_devices(work: &Workdir, agent: &Agent) -> Browser {
    let mut browser = Browser::start(work);
    browser.ask("Page.addScriptToEvaluateOnNewDocument", serde_json::json!({ "source": STREAM }));
    browser.open(&address(agent));
    browser.until("document.querySelector('#link').textContent === 'live'");
    browser.value("push('devices', { rows: [row(1, 5), { ...row(2, 5), state: 'failed', state_reason: 'no registry' }], gone: [] })");
    browser.until("document.querySelectorAll('#devices tr').length === 2");
    browser.value("document.querySelector('[data-device=d2]').click()");
    browser.until("!document.querySelector('#device').hidden && streams === 2");
    browser.value("push('devices', { rows: [row(1, 5), { ...row(2, 5), state: 'failed', state_reason: 'no registry' }], gone: [] })");
    browser.value("push('map', { id: 'd2', blobs: [{ digest: `sha256:${'a'.repeat(64)}`, size_bytes: 1000, cell_bytes: 100, cells: '0X2XA00' }] })");
    browser.until("document.querySelectorAll('#map canvas').length === 1");
    browser
}

fn prefer(browser: &mut Browser, scheme: &str) {
    let features = serde_json::json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
    browser.ask("Emulation.setEmulatedMedia", features);
}

#[test]
fn axe_finds_nothing_that_keeps_people_out_in_light_and_dark() {
    require!(cannot(), axe::cannot());
    let work = Workdir::new();
    let agent = Place::new(work.path()).reading_ahead().with(&["--listen", "127.0.0.1:0"]).start();
    let mut browser = with_two_devices(&work, &agent);
    for scheme in ["light", "dark"] {
        prefer(&mut browser, scheme);
        let found = axe::violations(&mut browser);
        assert!(found.is_empty(), "{scheme}: {found:#?}");
    }
    browser.value("document.body.prepend(Object.assign(document.createElement('img'), { src: 'data:,' }))");
    let found = axe::violations(&mut browser);
    assert!(found.iter().any(|one| one.starts_with("image-alt ")), "it does look: {found:#?}");
    assert!(agent.stop().success());
}

#[test]
fn who_cannot_see_it_or_has_no_mouse_can_use_it_in_light_and_dark() {
    require!(cannot());
    let work = Workdir::new();
    let agent = Place::new(work.path()).reading_ahead().with(&["--listen", "127.0.0.1:0"]).start();
    let mut browser = with_two_devices(&work, &agent);
    for scheme in ["light", "dark"] {
        prefer(&mut browser, scheme);
        let stumbles = browser.value(STUMBLES);
        assert_eq!(stumbles.as_array().map(Vec::len), Some(0), "{scheme}: {stumbles:#}");
    }
    let tree = browser.ask("Accessibility.getFullAXTree", serde_json::json!({}));
    let mut seen = 0;
    for node in tree["nodes"].as_array().expect("nodes") {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        if node["ignored"] == false && NAMED.contains(&role) {
            seen += 1;
            assert_ne!(node["name"]["value"].as_str().unwrap_or_default().trim(), "", "a nameless {role}: {node:#}");
        }
    }
    assert!(seen > 20, "{seen}");
    // Everything that can be used is reached by the keyboard.
    browser.value("document.activeElement.blur(); window.reached = new Set(); document.addEventListener('focusin', (e) => reached.add(e.target))");
    for _ in 0..60 {
        browser.press(TAB.0, TAB.1);
    }
    let missed = browser.value(
        "[...document.querySelectorAll('a, button, input')].filter((n) => n.checkVisibility() && !n.disabled && !reached.has(n)).map((n) => n.outerHTML)",
    );
    assert_eq!(missed.as_array().map(Vec::len), Some(0), "{missed:#}");
    complains_of_nothing(&mut browser);
    assert!(agent.stop().success());
}
