//! What changes in a file, as a unified diff of one hunk. Pure.

/// Lines shown around a change.
const CONTEXT: usize = 3;

/// The difference as `diff -u` writes it; empty when there is none. A file that is not there is `None`.
#[must_use]
pub(super) fn unified(path: &str, before: Option<&str>, after: Option<&str>) -> String {
    if before == after {
        return String::new();
    }
    let name = |text: Option<&str>| if text.is_some() { path.to_owned() } else { "/dev/null".to_owned() };
    let old: Vec<&str> = before.unwrap_or_default().split_inclusive('\n').collect();
    let new: Vec<&str> = after.unwrap_or_default().split_inclusive('\n').collect();
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let most = old.len().min(new.len()) - head;
    let tail = old.iter().rev().zip(new.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    let first = head.saturating_sub(CONTEXT);
    let context = &old[first..head];
    let (gone, come) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    let below = &old[old.len() - tail..(old.len() - tail + CONTEXT).min(old.len())];
    let span = |changed: usize| {
        let lines = context.len() + changed + below.len();
        // An empty side is said to begin before its first line.
        format!("{},{lines}", if lines == 0 { first } else { first + 1 })
    };
    let (from, to) = (span(gone.len()), span(come.len()));
    let mut text = format!("--- {}\n+++ {}\n@@ -{from} +{to} @@\n", name(before), name(after));
    let marked = [(' ', context), ('-', gone), ('+', come), (' ', below)];
    for (mark, line) in marked.iter().flat_map(|(mark, lines)| lines.iter().map(move |line| (mark, line))) {
        text.push(*mark);
        text.push_str(line);
        if !line.ends_with('\n') {
            text.push_str("\n\\ No newline at end of file\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_one_hunk_with_three_lines_around_it() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let new = old.replace("5\n", "five\n5.5\n");
        let hunk = "--- /f\n+++ /f\n@@ -2,7 +2,8 @@\n 2\n 3\n 4\n-5\n+five\n+5.5\n 6\n 7\n 8\n";
        assert_eq!(unified("/f", Some(old), Some(&new)), hunk);
        assert_eq!(unified("/f", Some(old), Some(old)), "");
    }

    #[test]
    fn files_that_come_or_go_and_ends_without_a_newline_are_shown() {
        assert_eq!(unified("/f", None, Some("a\n")), "--- /dev/null\n+++ /f\n@@ -0,0 +1,1 @@\n+a\n");
        assert_eq!(unified("/f", Some("a\n"), None), "--- /f\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-a\n");
        let text = unified("/f", Some("a"), Some("a\nb\n"));
        assert_eq!(text, "--- /f\n+++ /f\n@@ -1,1 +1,2 @@\n-a\n\\ No newline at end of file\n+a\n+b\n");
        // A repeated line is counted once, at either end.
        assert_eq!(unified("/f", Some("a\na\n"), Some("a\n")), "--- /f\n+++ /f\n@@ -1,2 +1,1 @@\n a\n-a\n");
    }
}
