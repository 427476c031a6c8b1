//! The writer obeys the rules that readers enforce.

use std::io::Cursor;

use super::*;

fn writer(options: Options) -> LayerWriter<Cursor<Vec<u8>>> {
    LayerWriter::new(Cursor::new(Vec::new()), options).unwrap()
}

fn bare() -> Options {
    Options { frames: None, tar: false, ..Options::default() }
}

#[test]
fn extents_join_and_are_cut_as_upstream_does() {
    let mut writer = writer(bare());
    writer.data(10, &[1; 1024]).unwrap();
    writer.data(12, &[1; 512]).unwrap();
    writer.zeroed(13, 20_000).unwrap();
    writer.zeroed(20_013, 1).unwrap();
    writer.data(20_014, &vec![1; 16_383 * 512]).unwrap();
    let entries: Vec<_> = writer.index.iter().map(|e| (e.start, e.sectors, e.moffset, e.zeroed)).collect();
    let expected = [
        (10, 3, 8, false),
        (13, 16_382, 11, true),
        (16_395, 3619, 11, true),
        (20_014, 16_382, 11, false),
        (36_396, 1, 16_393, false),
    ];
    assert_eq!(entries, expected);
}

#[test]
fn what_no_reader_would_take_is_refused() {
    let mut ordered = writer(bare());
    ordered.data(10, &[1; 1024]).unwrap();
    assert!(matches!(ordered.data(11, &[1; 512]), Err(WriteError::Order { start: 11, previous_end: 12 })));
    assert!(matches!(ordered.data(12, &[1; 100]), Err(WriteError::Size(100))));
    assert!(matches!(ordered.zeroed(1 << 50, 1), Err(WriteError::Size(_))));
    let refused = |options| LayerWriter::new(Cursor::new(Vec::new()), options).unwrap_err();
    assert!(matches!(refused(Options { device_bytes: Some(513), ..bare() }), WriteError::Size(513)));
    assert!(matches!(refused(Options { tar: true, ..bare() }), WriteError::Options(_)));
    assert!(matches!(refused(Options { comment: "x".repeat(257), ..bare() }), WriteError::Options(_)));
    let frames = Some(Format { codec: Codec::Lz4, crc: true, block_bytes: 2048 });
    assert!(matches!(refused(Options { frames, ..Options::default() }), WriteError::Options(_)));
    let mut fragmented = writer(bare());
    let mut starts = (0..).step_by(2);
    let error = starts.find_map(|start| fragmented.zeroed(start, 1).err()).unwrap();
    assert!(matches!(error, WriteError::TooManyExtents { entries: 1_000_192 }), "{error}");
}

#[test]
fn uuids_read_and_print_as_upstream_writes_them() {
    let text = "01BB4FCE-3EB1-B56B-05AD-F99504DAFD31";
    let uuid: Uuid = text.parse().unwrap();
    assert_eq!(uuid.to_string(), text);
    assert_eq!(text.to_lowercase().parse(), Ok(uuid));
    assert_eq!(Uuid::NULL.to_string(), "00000000-0000-0000-0000-000000000000");
    for bad in ["", "01BB4FCE3EB1B56B05ADF99504DAFD31", &text[1..], "01BB4FCE-3EB1-B56B-05ADF-99504DAFD31"] {
        assert_eq!(bad.parse::<Uuid>(), Err(UuidError), "{bad:?}");
    }
    let chain = "sha256:01bb4fce3eb1b56b05adf99504dafd31e3b0c44298fc1c149afbf4c8996fb924".parse().unwrap();
    assert_eq!(Uuid::of_chain(&chain), uuid);
}

#[test]
fn holes_of_a_file_are_not_read() {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(1 << 34).unwrap();
    for at in [0, 5 << 30] {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[9; 5000]).unwrap();
    }
    let mut out = Cursor::new(Vec::new());
    let written = disk(&file, &mut out, Options::default()).unwrap();
    assert_eq!((written.extents, written.data_bytes, written.device_bytes), (2, 4 * 4096, 1 << 34));
    assert_eq!(written.blob, Blob { digest: Digest::of(out.get_ref()), size_bytes: out.get_ref().len() as u64 });
    let sums = [1, 2, 7]
        .map(|threads| disk(&file, Cursor::new(Vec::new()), Options { threads, ..Options::default() }).unwrap());
    assert!(sums.iter().all(|other| *other == written), "whatever the number of threads");
}

#[test]
fn a_blob_may_start_anywhere_in_its_output() {
    let mut out = Cursor::new(vec![7; 1000]);
    out.set_position(1000);
    let written = disk(&[1; 5000][..], &mut out, Options::default()).unwrap();
    let bytes = out.into_inner();
    assert!(bytes[..1000].iter().all(|&b| b == 7));
    assert_eq!(written.blob.digest, Digest::of(&bytes[1000..]));
}
