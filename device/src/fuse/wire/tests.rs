//! FUSE messages of every kind and length, and their answers.

use fuse_backend_rs::abi::fuse_abi::{Opcode, OpenIn};

use super::*;

const FILE: File = File { size_bytes: 10_000, uid: 0, gid: 0, page_bytes: 4096 };

fn judge(op: u32, nodeid: u64, body: &[u8]) -> Verdict {
    let len = u32::try_from(size_of::<InHeader>() + body.len()).unwrap();
    let header = InHeader { len, opcode: op, unique: 9, nodeid, ..InHeader::default() };
    let mut message = header.as_slice().to_vec();
    message.extend_from_slice(body);
    let (header, body) = open(&message).unwrap();
    FILE.judge(&header, body)
}

fn op(opcode: Opcode, nodeid: u64, body: &[u8]) -> Verdict {
    judge(opcode as u32, nodeid, body)
}

fn read_in(offset: u64, size: u32) -> Vec<u8> {
    ReadIn { offset, size, ..ReadIn::default() }.as_slice().to_vec()
}

#[test]
fn messages_cut_short_are_refused_and_never_panic() {
    let mut message = InHeader { len: 80, opcode: 15, nodeid: 2, ..InHeader::default() }.as_slice().to_vec();
    message.extend_from_slice(&read_in(0, 512));
    assert!(open(&message).is_some());
    for cut in 0..message.len() {
        assert!(open(&message[..cut]).is_none(), "{cut} bytes");
    }
    for opcode in 0..64 {
        for len in 0..72 {
            for nodeid in 0..4 {
                judge(opcode, nodeid, &vec![0xff; len]);
                judge(opcode, nodeid, &vec![0; len]);
            }
        }
    }
    assert_eq!(op(Opcode::Read, FILE_ID, &[0; 39]), Verdict::Refuse(Errno::INVAL));
}

#[test]
fn reads_are_cut_at_the_end_of_the_file() {
    let range = |start, end| Verdict::Read(ByteRange::new(start, end).unwrap());
    assert_eq!(op(Opcode::Read, FILE_ID, &read_in(0, 4096)), range(0, 4096));
    assert_eq!(op(Opcode::Read, FILE_ID, &read_in(8192, 4096)), range(8192, 10_000));
    assert_eq!(op(Opcode::Read, FILE_ID, &read_in(10_000, 4096)), Verdict::Reply(vec![]));
    assert_eq!(op(Opcode::Read, FILE_ID, &read_in(u64::MAX - 10, 10)), Verdict::Reply(vec![]));
    assert_eq!(op(Opcode::Read, FILE_ID, &read_in(u64::MAX, 4096)), Verdict::Refuse(Errno::INVAL));
    assert_eq!(op(Opcode::Read, FILE_ID, &read_in(0, MAX_READ_BYTES + 1)), Verdict::Refuse(Errno::INVAL));
    assert_eq!(op(Opcode::Read, ROOT_ID, &read_in(0, 1)), Verdict::Refuse(Errno::INVAL));
}

#[test]
fn the_file_is_found_by_its_name_alone() {
    assert!(matches!(op(Opcode::Lookup, ROOT_ID, b"disk\0"), Verdict::Reply(entry) if entry.len() == 128));
    for (parent, name) in [(ROOT_ID, &b"disk2\0"[..]), (ROOT_ID, b"\0"), (FILE_ID, b"disk\0")] {
        assert_eq!(op(Opcode::Lookup, parent, name), Verdict::Refuse(Errno::NOENT));
    }
    assert_eq!(op(Opcode::Lookup, ROOT_ID, b"disk"), Verdict::Refuse(Errno::INVAL));
    assert_eq!(op(Opcode::Getattr, 3, &[]), Verdict::Refuse(Errno::NOENT));
}

#[test]
fn nothing_can_be_changed() {
    let flags = |flags| OpenIn { flags, ..OpenIn::default() }.as_slice().to_vec();
    assert!(matches!(op(Opcode::Open, FILE_ID, &flags(0)), Verdict::Reply(_)));
    assert_eq!(op(Opcode::Open, FILE_ID, &flags(1)), Verdict::Refuse(Errno::ROFS));
    assert_eq!(op(Opcode::Open, FILE_ID, &flags(2)), Verdict::Refuse(Errno::ROFS));
    for change in [Opcode::Write, Opcode::Setattr, Opcode::Unlink, Opcode::Create, Opcode::Fallocate, Opcode::Rename2] {
        assert_eq!(op(change, FILE_ID, &[0; 64]), Verdict::Refuse(Errno::ROFS), "{change:?}");
    }
}

#[test]
fn what_expects_no_answer_gets_none() {
    assert_eq!(op(Opcode::Forget, FILE_ID, &[0; 8]), Verdict::Silent);
    assert_eq!(op(Opcode::BatchForget, 0, &[0; 8]), Verdict::Silent);
    let interrupt = InterruptIn { unique: 77 }.as_slice().to_vec();
    assert_eq!(op(Opcode::Interrupt, 0, &interrupt), Verdict::Interrupt { unique: 77 });
}

#[test]
fn unknown_operations_are_not_implemented() {
    for opcode in [0, 7, 19, 49, 50, 52, 4096, u32::MAX] {
        assert_eq!(judge(opcode, ROOT_ID, &[]), Verdict::Refuse(Errno::NOSYS), "{opcode}");
    }
}

#[test]
fn the_handshake_takes_only_what_the_kernel_offers() {
    let asked = |minor, flags| InitIn { major: 7, minor, max_readahead: 1 << 17, flags }.as_slice().to_vec();
    let Verdict::Reply(answer) = op(Opcode::Init, 0, &asked(45, u32::MAX)) else { panic!("refused") };
    let answer: InitOut = head(&answer).unwrap();
    let wanted = 1 | 1 << 15 | 1 << 18 | 1 << 22;
    assert_eq!((answer.flags, answer.flags2, answer.max_pages), (wanted, 0, 256));
    // From 7.36 on the question is longer.
    let offered = [asked(45, u32::MAX), u32::MAX.as_slice().to_vec(), vec![0; 44]].concat();
    let Verdict::Reply(answer) = op(Opcode::Init, 0, &offered) else { panic!("refused") };
    let answer: InitOut = head(&answer).unwrap();
    assert_eq!((answer.flags, answer.flags2), (wanted | 1 << 30, 1 << 7));
    let Verdict::Reply(answer) = op(Opcode::Init, 0, &asked(28, 1)) else { panic!("refused") };
    assert_eq!(head::<InitOut>(&answer).unwrap().flags, 1);
    assert_eq!(op(Opcode::Init, 0, &asked(27, 1)), Verdict::Refuse(Errno::PROTO));
}

#[test]
fn a_directory_is_listed_once_from_any_offset() {
    let names = |offset, size| {
        let Verdict::Reply(bytes) = op(Opcode::Readdir, ROOT_ID, &read_in(offset, size)) else { panic!("refused") };
        let (mut names, mut rest) = (Vec::new(), &bytes[..]);
        while let Some(entry) = head::<Dirent>(rest) {
            let name = &rest[24..24 + entry.namelen as usize];
            names.push(String::from_utf8(name.to_vec()).unwrap());
            rest = &rest[(24 + name.len()).next_multiple_of(8)..];
        }
        names
    };
    assert_eq!(names(0, 4096), [".", "..", "disk"]);
    assert_eq!(names(2, 4096), ["disk"]);
    assert_eq!(names(3, 4096), [""; 0]);
    assert_eq!(names(0, 64), [".", ".."]);
}

#[test]
fn answers_carry_their_length_or_an_error() {
    let ok: OutHeader = head(&header(5, Ok(100))).unwrap();
    assert_eq!((ok.len, ok.error, ok.unique), (116, 0, 5));
    let error: OutHeader = head(&header(6, Err(Errno::IO))).unwrap();
    assert_eq!((error.len, error.error, error.unique), (16, -5, 6));
}
