//! What is trusted at open, by table.

use penstock_blob::{Blob, ChunkSize, Digest};

use super::*;

const UUID: [u8; 16] = [7; 16];

fn meta() -> Meta {
    let blob = Blob { digest: Digest::of(b"blob"), size_bytes: (600 << 16) - 5 };
    Meta { no: 3, uuid: UUID, blob, chunk_size: ChunkSize::new(64 << 10).unwrap() }
}

fn headers(chunks: impl IntoIterator<Item = (u32, u32)>) -> Vec<u8> {
    let sealer = Sealer::new(&meta().blob, meta().chunk_size);
    let mut all = vec![0; 600 * HEADER_BYTES];
    for (chunk, crc) in chunks {
        let at = chunk as usize * HEADER_BYTES;
        all[at..at + HEADER_BYTES].copy_from_slice(&sealer.header(chunk, crc));
    }
    all
}

fn records(chunks: impl IntoIterator<Item = (u32, u32)>) -> Records {
    let record = BlobRecord { blob: meta().blob, chunk_size: meta().chunk_size, verified: true };
    let mut records = Records::default();
    records.blobs.insert(3, record);
    for (chunk, crc) in chunks {
        let segments = records.segments.entry(3).or_default();
        segments.entry(chunk / 256).or_default().put(chunk % 256, crc);
    }
    records
}

/// Chunk and checksum of everything present.
fn listed(presence: &Presence) -> Vec<(u32, u32)> {
    let one = |(n, r): (&u32, &SegmentRecord)| {
        r.bits.iter().map(|slot| (n * 256 + slot, r.crcs[slot as usize])).collect::<Vec<_>>()
    };
    presence.segments.iter().flat_map(one).collect()
}

#[test]
fn only_the_very_index_of_an_orderly_close_is_believed_fully() {
    let sys = SysRecord { uuid: UUID, commits: 5, next_no: 1, starts: 1 };
    let clean = Mark { uuid: UUID, commits: 5 };
    let after = |clean| Witness { clean, reached: None, blobs: true };
    assert_eq!(trust(Some(&sys), 0, &after(Some(clean))), Trust::Fully);
    assert_eq!(trust(None, 0, &Witness::default()), Trust::Fully, "a new directory");
    assert_eq!(trust(Some(&sys), 0, &after(None)), Trust::Partly(None), "a crash");
    assert!(matches!(trust(None, 0, &after(Some(clean))), Trust::Not(_)), "opens fine, but empty");
    for (damaged, clean) in [(1, clean), (0, Mark { commits: 9, ..clean }), (0, Mark { uuid: [8; 16], ..clean })] {
        assert!(matches!(trust(Some(&sys), damaged, &after(Some(clean))), Trust::Partly(Some(_))));
    }
}

#[test]
fn an_index_behind_its_own_commits_is_told_from_one_that_crashed() {
    let sys = SysRecord { uuid: UUID, commits: 5, next_no: 1, starts: 1 };
    let reached = |uuid, commits| Witness { reached: Some(Mark { uuid, commits }), blobs: true, clean: None };
    for (uuid, commits) in [(UUID, 5), (UUID, 4), ([8; 16], 6)] {
        assert_eq!(trust(Some(&sys), 0, &reached(uuid, commits)), Trust::Partly(None), "{commits}");
    }
    let Trust::Partly(Some(reason)) = trust(Some(&sys), 0, &reached(UUID, 6)) else { panic!("it lost a commit") };
    assert_eq!(reason, "it had come to commit 6 but holds commit 5");
}

#[test]
fn presence_is_what_the_index_or_a_sealed_header_knows() {
    let all = presence(&meta(), 600, Some(&mut records([(0, 1), (300, 2)])), &headers([(0, 9), (599, 3)]));
    assert_eq!(listed(&all), [(0, 1), (300, 2), (599, 3)]);
    assert_eq!((all.adopted, all.verified, all.is_recorded), (1, true, true));
    assert_eq!(all.recorded.len(), 2);
    let alone = presence(&meta(), 600, None, &headers([(0, 9), (599, 3)]));
    assert_eq!((listed(&alone), alone.adopted, alone.is_recorded), (vec![(0, 9), (599, 3)], 2, false));
    assert_eq!(presence(&meta(), 600, None, &[]), Presence::default());
}

#[test]
fn records_of_another_blob_and_headers_of_another_slot_count_for_nothing() {
    let other = Meta { blob: Blob { digest: Digest::of(b"other"), ..meta().blob }, ..meta() };
    assert_eq!(presence(&other, 600, Some(&mut records([(0, 1)])), &headers([(4, 4)])), Presence::default());
    let mut moved = headers([(4, 4)]);
    moved.rotate_right(HEADER_BYTES);
    assert_eq!(presence(&meta(), 600, None, &moved), Presence::default());
}

#[test]
fn chunks_beyond_the_end_are_cut() {
    let all = presence(&meta(), 300, Some(&mut records([(299, 1), (300, 1), (513, 1)])), &headers([(400, 1)]));
    assert_eq!(listed(&all), [(299, 1)]);
}
