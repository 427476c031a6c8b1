//! Whichever side is added up, and in whatever pieces, the pages are the same.

use penstock_blob::Blob;
use proptest::prelude::*;

use super::*;
use crate::zfile::{Codec, Format};

/// Where the ZFile starts in the blob.
const FILE: u64 = 1536;

struct Made {
    shape: Shape,
    header: Header,
    table: Vec<u8>,
}

fn made(lengths: &[u32]) -> Made {
    let data: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
    let table: Vec<u8> = lengths.iter().flat_map(|length| length.to_le_bytes()).collect();
    let format = Format { codec: Codec::Lz4, crc: true, block_bytes: 4096 };
    let frames = lengths.len() as u64;
    let blob = Blob { digest: Digest::of(b"blob"), size_bytes: FILE + 1024 + data + table.len() as u64 };
    let file = ByteRange::new(FILE, blob.size_bytes).unwrap();
    let shape = Shape { blob, file, data_start: FILE + 512, frames, original_bytes: frames * 4096, format };
    let header = Header {
        format,
        flags: 1 << 4,
        index_offset: 512 + data,
        frames,
        original_bytes: frames * 4096,
        index_crc: crc::raw(0, &table),
        dict_bytes: 0,
    };
    Made { shape, header, table }
}

impl Made {
    fn sums(&self) -> Sums {
        Sums::new(self.shape, &self.header, Digest::of(b"identity"))
    }

    fn bytes(&self, range: ByteRange) -> &[u8] {
        let at = |place: u64| usize::try_from(place - FILE - self.header.index_offset).unwrap();
        &self.table[at(range.start())..at(range.end())]
    }

    /// Adds up all of it in these steps, over and over: a side, how many pages are skipped to look ahead, and how many are taken.
    fn pages(&self, steps: &[(bool, u32)]) -> Result<Vec<u8>, LayerError> {
        let mut sums = self.sums();
        let mut file = vec![0; usize::try_from(self.shape.pages() + 1).unwrap() * PAGE_BYTES];
        for &(front, most) in steps.iter().cycle() {
            let side = if front { Side::Front } else { Side::Back };
            let Some(next) = sums.next(side, 0, most) else { break };
            // What lies behind it continues it.
            if let Some(behind) = sums.next(side, most, 1) {
                assert_eq!(
                    if front { next.end() } else { behind.end() },
                    if front { behind.start() } else { next.start() }
                );
            }
            let made = sums.take(side, self.bytes(next))?;
            let at = usize::try_from(made.first).unwrap() * PAGE_BYTES;
            assert!(file[at..at + made.pages.len()].iter().all(|&byte| byte == 0), "no page is made twice");
            file[at..at + made.pages.len()].copy_from_slice(&made.pages);
        }
        assert!(sums.is_complete());
        sums.finish()?;
        Ok(file)
    }
}

fn lengths() -> impl Strategy<Value = Vec<u32>> {
    let count = prop_oneof![1..3000_usize, Just(1017), Just(1018), Just(1019), Just(2036)];
    (count, any::<u64>()).prop_map(|(count, seed)| {
        let length = |i: u64| 5 + u32::try_from((seed ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).unwrap() % 9000;
        (0..count as u64).map(length).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn pages_are_the_same_from_either_side_in_any_pieces(
        lengths in lengths(),
        steps in proptest::collection::vec((any::<bool>(), 1..5_u32), 1..6),
    ) {
        let made = made(&lengths);
        let expected = made.pages(&[(true, u32::MAX)]).unwrap();
        prop_assert!(made.pages(&steps).unwrap() == expected);
    }

    #[test]
    fn a_changed_length_is_noticed_from_either_side(
        lengths in lengths(),
        steps in proptest::collection::vec((any::<bool>(), 1..5_u32), 1..6),
        which in any::<prop::sample::Index>(),
        bit in 0..32_u32,
        checked in any::<bool>(),
    ) {
        let mut made = made(&lengths);
        made.table[4 * which.index(lengths.len())..][usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
        if !checked {
            made.header.flags = 0;
        }
        prop_assert!(made.pages(&steps).is_err());
    }
}

#[test]
fn a_side_is_chosen_by_the_bytes_to_the_page() {
    let made = made(&vec![100; 10 * 1018]);
    let mut sums = made.sums();
    assert_eq!([0, 5, 6, 9].map(|page| sums.nearer(page)), [Side::Front, Side::Front, Side::Back, Side::Back]);
    let next = sums.next(Side::Front, 0, 4).unwrap();
    sums.take(Side::Front, made.bytes(next)).unwrap();
    assert_eq!(
        [4, 6, 7, 8, 9].map(|page| sums.nearer(page)),
        [Side::Front, Side::Front, Side::Front, Side::Back, Side::Back]
    );
    assert_eq!((sums.reached(), sums.is_complete()), ((4, 10), false));
}
