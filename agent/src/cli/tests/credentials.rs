//! `penstock credentials` against the API's own router.

use std::io::Write as _;

use super::{Exit, Fake, fake, run_against, typed};
use crate::cli::credentials::report_text;

#[test]
fn a_list_of_credentials() {
    let text = report_text(&fake::credentials());
    assert_eq!(text, include_str!("golden/credentials.txt"));
}

#[tokio::test]
async fn credentials_are_set_from_a_file_listed_and_removed() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "hunter2").unwrap();
    let path = file.path().display();
    for line in [
        format!("penstock credentials set registry.example.com --username u --from-file {path} --expires-in 12h"),
        format!("penstock credentials set registry.example.com --identity-token --from-file {path}"),
        format!("penstock credentials set registry.example.com --registry-token --from-file {path} --output json"),
        "penstock credentials list".to_owned(),
        "penstock credentials ls --output json".to_owned(),
        "penstock credentials remove registry.example.com".to_owned(),
    ] {
        run_against(Fake::default(), &line).await.unwrap_or_else(|failure| panic!("{line}: {failure}"));
    }
}

#[tokio::test]
async fn what_cannot_be_handed_over_is_said_without_the_secret() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "hunter2").unwrap();
    let path = file.path().display();
    for (line, exit) in [
        (format!("penstock credentials set other --username u --from-file {path}"), Exit::Usage),
        (format!("penstock credentials set r.io --username u --from-file {path} --expires-in soon"), Exit::Usage),
        ("penstock credentials set r.io --username u --from-file /nonexistent".to_owned(), Exit::Usage),
        ("penstock credentials set r.io --username u --from-file /dev/null".to_owned(), Exit::Usage),
        ("penstock credentials remove other".to_owned(), Exit::NotFound),
    ] {
        let failure = run_against(Fake::default(), &line).await.unwrap_err();
        assert_eq!(failure.exit(), exit, "{line}: {failure}");
        assert!(!format!("{failure} {failure:?}").contains("hunter2"), "{failure}");
    }
    for line in [
        "penstock credentials",
        "penstock credentials set r.io",
        "penstock credentials set r.io --username u --registry-token",
    ] {
        assert_eq!(typed(line).unwrap_err().exit_code(), 2, "{line}");
    }
}
