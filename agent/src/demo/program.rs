//! A program of this machine and the files that its start reads: what the demo reads from the image.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

/// A program and its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// What it is called.
    pub(super) name: &'static str,
    /// What was asked of it, in words.
    pub(super) doing: &'static str,
    /// Its binary, libraries and modules: regular files with links resolved, the binary first.
    pub(super) files: Vec<PathBuf>,
}

struct Candidate {
    name: &'static str,
    binary: &'static str,
    doing: &'static str,
    /// Prints the files of the modules it loads, one a line; empty when there is no such thing.
    lists_modules: &'static [&'static str],
}

/// Best first: a larger start shows more.
const CANDIDATES: [Candidate; 3] = [
    Candidate {
        name: "python3",
        binary: "/usr/bin/python3",
        doing: "start and import json, ssl, http.client, sqlite3, asyncio and email",
        lists_modules: &["-c", PYTHON_MODULES],
    },
    Candidate {
        name: "perl",
        binary: "/usr/bin/perl",
        doing: "start and load POSIX and Data::Dumper",
        lists_modules: &["-MPOSIX", "-MData::Dumper", "-e", "print \"$_\\n\" for values %INC"],
    },
    Candidate { name: "bash", binary: "/bin/bash", doing: "start", lists_modules: &[] },
];

const PYTHON_MODULES: &str = "
import sys, importlib
for name in ('json', 'ssl', 'http.client', 'sqlite3', 'asyncio', 'email.mime.text', 'decimal', 'logging.config'):
    try: importlib.import_module(name)
    except ImportError: pass
for module in list(sys.modules.values()):
    cached, source = getattr(module, '__cached__', None), getattr(module, '__file__', None)
    for path in (cached, source):
        if path: print(path)
";

/// The first candidate that this machine has, with what its start reads. `None` on a machine without any of them.
pub(super) fn find() -> Option<Program> {
    CANDIDATES.iter().find_map(|candidate| {
        let binary = Path::new(candidate.binary).canonicalize().ok()?;
        let modules = if candidate.lists_modules.is_empty() {
            Vec::new()
        } else {
            output(Command::new(&binary).args(candidate.lists_modules)).lines().map(PathBuf::from).collect()
        };
        let mut objects: Vec<PathBuf> = vec![binary.clone()];
        objects.extend(modules.iter().filter(|path| path.extension().is_some_and(|ext| ext == "so")).cloned());
        let libraries = libraries(&output(Command::new("ldd").args(&objects)));
        let others: BTreeSet<PathBuf> = libraries
            .into_iter()
            .chain(modules)
            .filter_map(|path| path.canonicalize().ok())
            .filter(|path| path.is_file() && path.starts_with("/usr") && *path != binary)
            .collect();
        let files = std::iter::once(binary).chain(others).collect();
        Some(Program { name: candidate.name, doing: candidate.doing, files })
    })
}

/// What a command prints; nothing when it cannot be run: the demo then reads fewer files.
fn output(command: &mut Command) -> String {
    command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// The libraries that ldd(1) lists: `name => /path (0x...)`, or `/path (0x...)` for the loader.
fn libraries(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| {
            let path = line.split(" => ").last()?.split(" (0x").next()?.trim();
            path.starts_with('/').then(|| PathBuf::from(path)).filter(|_| line.contains("(0x"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "/usr/bin/x:\n\tlinux-vdso.so.1 (0x00007ffc)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
            \tmissing.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tstatically linked\n";
        let expected = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(text), expected);
    }
}
