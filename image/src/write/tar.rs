//! The tar archive around a layer, byte for byte as `overlaybd-commit -t` writes it: the size stands in a pax record,
//! because it is not known at the start and may not fit in 33 bits.

use std::io::{self, Seek, SeekFrom, Write};

const BLOCK: usize = crate::tar::BLOCK_BYTES;
/// Bytes before the layer: pax header, pax record, member header.
pub(super) const HEAD_BYTES: usize = 3 * BLOCK;

/// Pads the archive that started at `base` and whose layer ends at `end`, and fills in its head. Answers where it ends.
pub(super) fn close(out: &mut (impl Write + Seek), base: u64, end: u64) -> io::Result<u64> {
    let payload = end - base - HEAD_BYTES as u64;
    let padding = payload.next_multiple_of(BLOCK as u64) - payload;
    let blank = [0; 3 * BLOCK];
    let tail = usize::try_from(padding).unwrap_or(0) + 2 * BLOCK;
    out.write_all(&blank[..tail])?;
    let last = out.stream_position()?;
    out.seek(SeekFrom::Start(base))?;
    out.write_all(&head(payload))?;
    out.seek(SeekFrom::Start(last))?;
    Ok(last)
}

/// The three blocks before a layer of `payload` bytes.
pub(super) fn head(payload: u64) -> [u8; HEAD_BYTES] {
    let record = size_record(payload);
    let mut head = [0; HEAD_BYTES];
    let (pax, rest) = head.split_at_mut(BLOCK);
    let (body, member) = rest.split_at_mut(BLOCK);
    put(pax, 0, "overlaybd.pax");
    put(pax, 124, &format!("{:>11o} ", record.len()));
    finish(pax, b'x');
    put(body, 0, &record);
    put(member, 0, "overlaybd.commit");
    put(member, 100, "100644 ");
    put(member, 108, "     0 ");
    put(member, 116, "     0 ");
    put(member, 124, "          0 ");
    put(member, 136, "          0 ");
    put(member, 265, "root");
    put(member, 297, "root");
    finish(member, b'0');
    head
}

/// `LENGTH size=N\n`, where the length counts its own digits.
fn size_record(payload: u64) -> String {
    let rest = format!(" size={payload}\n");
    let mut len = rest.len();
    while len < rest.len() + len.to_string().len() {
        len += 1;
    }
    format!("{len}{rest}")
}

fn put(block: &mut [u8], at: usize, text: &str) {
    block[at..at + text.len()].copy_from_slice(text.as_bytes());
}

fn finish(block: &mut [u8], kind: u8) {
    block[156] = kind;
    put(block, 257, "ustar\x0000");
    put(block, 148, "        ");
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    put(block, 148, &format!("{sum:>6o} \0"));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_head_is_the_one_that_upstream_writes() {
        let blobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/overlaybd/oci-layout/blobs/sha256");
        for hex in [
            "abecdcaa15bc70a91df10f27fa642aafc2c33195b929bd501b7a66b70ce8d97d",
            "f8e0f760d394cd60c3d943900ef68bd7d15e68cd3ad0715548797f895344fab0",
            "450d141124b42f870f39235ff2b9a76b29191d92f0da6a04d2ae0280ea8e38f3",
        ] {
            let upstream = std::fs::read(blobs.join(hex)).unwrap();
            let record = std::str::from_utf8(&upstream[BLOCK..BLOCK + 40]).unwrap().split('\n').next().unwrap();
            let payload = record.rsplit('=').next().unwrap().parse().unwrap();
            assert!(head(payload)[..] == upstream[..HEAD_BYTES], "{hex}");
            let mut archive = io::Cursor::new(upstream[..HEAD_BYTES + usize::try_from(payload).unwrap()].to_vec());
            archive.seek(SeekFrom::End(0)).unwrap();
            let end = archive.stream_position().unwrap();
            assert_eq!(close(&mut archive, 0, end).unwrap(), upstream.len() as u64);
            assert!(archive.into_inner() == upstream, "{hex}: the padding");
        }
    }

    #[test]
    fn the_record_counts_itself() {
        for (payload, record) in
            [(200_325, "15 size=200325\n"), (9, "9 size=9\n"), (99, "11 size=99\n"), (0, "9 size=0\n")]
        {
            assert_eq!(size_record(payload), record);
        }
    }
}
