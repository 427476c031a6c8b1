//! The documents as a site: every page has its place in docs/SUMMARY.md, and every link leads somewhere. Without mdbook, which `make site` installs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use penstock_tests::workspace;

/// The pages below a directory, from the root.
fn pages(dir: &str) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![PathBuf::from(dir)]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(workspace::root().join(&dir)).expect("a directory") {
            let path = dir.join(entry.expect("an entry").file_name());
            if workspace::root().join(&path).is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(workspace::root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of a page without what is code.
fn prose(path: &Path) -> String {
    let text = read(path);
    let outside: String = text.split("```").step_by(2).collect();
    outside.lines().map(|line| line.split('`').step_by(2).collect::<String>() + "\n").collect()
}

/// Where the links of a page lead, as they are written.
fn links(path: &Path) -> Vec<String> {
    let text = prose(path);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned());
    targets.filter(|target| !target.starts_with("http")).collect()
}

/// The names by which a page's headings can be linked to, as mdbook and code forges make them.
fn anchors(path: &Path) -> BTreeSet<String> {
    let text = read(path);
    let outside: String = text.split("```").step_by(2).collect();
    let heads = outside.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let name = |head: &str| {
        let kept = head
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .collect::<String>();
        kept.replace(' ', "-")
    };
    heads.map(name).collect()
}

/// `dir/../page.md` as `page.md`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(plain.pop(), "{} leads out of the repository", path.display()),
            other => plain.push(other),
        }
    }
    plain
}

#[test]
fn every_page_has_one_place_in_the_summary() {
    let mut listed: Vec<PathBuf> =
        links(Path::new("docs/SUMMARY.md")).iter().map(|link| Path::new("docs").join(link)).collect();
    listed.sort();
    let twice: Vec<&PathBuf> = listed.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).collect();
    assert!(twice.is_empty(), "docs/SUMMARY.md names twice: {twice:?}");
    let mut missing = pages("docs");
    missing.retain(|page| !page.ends_with("SUMMARY.md") && !listed.contains(page));
    assert!(missing.is_empty(), "add a line to docs/SUMMARY.md for each of these: {missing:?}");
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_there_are() {
    let mut all = pages("docs");
    all.extend(["README.md", "helm/penstock/README.md"].map(PathBuf::from));
    let (mut seen, mut dead) = (0, Vec::new());
    for page in &all {
        for link in links(page) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if file.is_empty() { page.clone() } else { plain(&page.parent().expect("a directory").join(file)) };
            let is_there = workspace::root().join(&target).exists();
            let is_page = target.extension().is_some_and(|end| end == "md");
            if !is_there || (is_page && !anchor.is_empty() && !anchors(&target).contains(anchor)) {
                dead.push(format!("{}: {link}", page.display()));
            }
            seen += 1;
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
    assert!(seen > 100, "{seen}");
}

#[test]
fn pictures_say_what_they_show_to_who_cannot_see_them() {
    for page in pages("docs") {
        for piece in prose(&page).split("![").skip(1) {
            let (words, _) = piece.split_once("](").expect("a picture");
            assert!(words.split_whitespace().count() >= 3, "{}: {words:?}", page.display());
        }
    }
    let pictures = fs::read_dir(workspace::root().join("docs/pictures")).expect("pictures");
    for picture in pictures.map(|entry| entry.expect("a picture").path()) {
        let text = fs::read_to_string(&picture).expect("SVG is text");
        assert!(text.contains("<title ") && text.contains("<desc "), "{}", picture.display());
        assert!(!text.contains("http://") || text.matches("http://").count() == 1, "nothing is loaded from elsewhere");
    }
}
