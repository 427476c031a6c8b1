//! What containerd's clients choose the words of: filters, labels, mappings of ids; what the kubelet sends to the image proxy; and records from a
//! damaged disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_snapshotter_fuzz::{images, words};

#[derive(arbitrary::Arbitrary, Debug)]
enum Input {
    /// Text as it comes.
    Filters(Vec<String>),
    /// Filters that are mostly of the language.
    Selectors(Vec<(Field, u8, u8, String)>),
    Labels(Vec<(u8, String)>),
    Record(Vec<u8>),
    /// The bytes of a call to the image service, as they come.
    Call(Vec<u8>),
    /// One whole message of such a call.
    Message(Vec<u8>),
}

#[derive(arbitrary::Arbitrary, Debug)]
enum Field {
    Name,
    Kind,
    Parent,
    Label(String),
}

const OPERATORS: [&str; 4] = ["", "==", "!=", "~="];
const QUOTES: [&str; 5] = ["", "\"", "'", "/", "|"];
const LABELS: [&str; 8] = [
    "containerd.io/snapshot.ref",
    "containerd.io/snapshot/cri.image-ref",
    "containerd.io/snapshot/cri.layer-digest",
    "containerd.io/snapshot/cri.manifest-digest",
    "containerd.io/snapshot/remote/stargz.reference",
    "containerd.io/snapshot/remote/stargz.digest",
    "containerd.io/snapshot/uidmapping",
    "containerd.io/snapshot/gidmapping",
];

fn selector((field, operator, quote, value): (Field, u8, u8, String)) -> String {
    let field = match field {
        Field::Name => "name".to_owned(),
        Field::Kind => "kind".to_owned(),
        Field::Parent => "parent".to_owned(),
        Field::Label(key) => format!("labels.\"{key}\""),
    };
    let pick = |from: &[&'static str], at: u8| from[usize::from(at) % from.len()];
    let quote = pick(&QUOTES, quote);
    format!("{field}{}{quote}{value}{quote}", pick(&OPERATORS, operator))
}

fuzz_target!(|input: Input| {
    match input {
        Input::Filters(filters) => {
            let _ = words::filtered(&filters);
        }
        Input::Selectors(selectors) => {
            let all: Vec<String> = selectors.into_iter().map(selector).collect();
            let _ = words::filtered(&all);
            let _ = words::filtered(&[all.join(",")]);
        }
        Input::Labels(labels) => {
            let labels = labels.into_iter().map(|(key, value)| (LABELS[usize::from(key) % 8].to_owned(), value));
            let _ = words::labelled(labels.collect());
        }
        Input::Call(body) => assert_ne!(images::heard(&body), Some(false)),
        Input::Message(message) => assert_ne!(images::heard(&images::framed(&message)), Some(false)),
        Input::Record(bytes) => assert_ne!(words::record(&bytes), Some(false)),
    }
});
