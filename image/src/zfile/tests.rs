//! ZFile headers, right and hostile.

use super::*;

/// The header of the upstream hello-world layer (docs/formats/overlaybd.md, worked example).
fn hello_world() -> [u8; 512] {
    let mut block = [0; 512];
    block[..24].copy_from_slice(&MAGIC);
    block[24..28].copy_from_slice(&96_u32.to_le_bytes());
    block[28..32].copy_from_slice(&0x0f1f_3445_u32.to_le_bytes());
    block[32..40].copy_from_slice(&0x1b_u64.to_le_bytes());
    block[40..48].copy_from_slice(&569_127_u64.to_le_bytes());
    block[48..56].copy_from_slice(&17_463_u64.to_le_bytes());
    block[56..64].copy_from_slice(&71_528_448_u64.to_le_bytes());
    block[64..68].copy_from_slice(&[0xb0, 0x55, 0xba, 0x6d]);
    block[72..76].copy_from_slice(&4096_u32.to_le_bytes());
    block[76] = 1;
    block[88] = 1;
    block
}

#[test]
fn a_real_header_parses_and_its_digest_is_right() {
    let header = Header::parse(&hello_world()).unwrap();
    assert_eq!(header.format, Format { codec: Codec::Lz4, crc: true, block_bytes: 4096 });
    assert_eq!((header.frames, header.original_bytes, header.index_crc), (17_463, 71_528_448, 0x6dba_55b0));
    assert!(header.is_truth() && header.has_index_crc());
    header.check_layout(639_491).unwrap();
}

#[test]
fn tampered_headers_give_typed_errors() {
    let resealed = |change: &dyn Fn(&mut [u8; 512])| {
        let mut block = hello_world();
        change(&mut block);
        let sum = digest(&block);
        block[28..32].copy_from_slice(&sum.to_le_bytes());
        Header::parse(&block)
    };
    let mut flipped = hello_world();
    flipped[41] ^= 1;
    assert!(matches!(Header::parse(&flipped), Err(HeaderError::Digest { found: 0x0f1f_3445, .. })));
    assert_eq!(resealed(&|b| b[0] = b'z'), Err(HeaderError::Magic));
    assert_eq!(resealed(&|b| b[76] = 0), Err(HeaderError::Codec(0)));
    assert_eq!(resealed(&|b| b[78] = 1), Err(HeaderError::Dictionary));
    assert_eq!(resealed(&|b| b[73] = 0x11), Err(HeaderError::BlockSize(0x1100)));
    assert_eq!(resealed(&|b| b[74] = 2), Err(HeaderError::BlockSize(0x2_1000)));
    let open = resealed(&|b| b[32] = 0x13).unwrap();
    assert_eq!((open.is_truth(), open.check_sealed()), (false, Err(HeaderError::Unsealed { flags: 0x13 })));
}

#[test]
fn hostile_counts_do_not_fit() {
    let good = Header::parse(&hello_world()).unwrap();
    let file_bytes = 639_491;
    for bad in [
        Header { frames: u64::MAX, ..good },
        Header { frames: 1_000_000_000, original_bytes: 4_096_000_000_000, ..good },
        Header { frames: 17_464, ..good },
        Header { original_bytes: u64::MAX, ..good },
        Header { index_offset: u64::MAX, ..good },
        Header { index_offset: 512, ..good },
        Header { dict_bytes: u32::MAX, ..good },
    ] {
        assert!(matches!(bad.check_layout(file_bytes), Err(HeaderError::Layout { .. })), "{bad:?}");
    }
    assert!(good.check_layout(file_bytes - 1).is_err(), "the table must end before the trailer");
}

#[test]
fn a_frame_decodes_whole_or_not_at_all() {
    let data: Vec<u8> = (0..4096_u32).map(|i| (i / 7 % 251).to_le_bytes()[0]).collect();
    let mut decoder = Decoder::default();
    for codec in [Codec::Lz4, Codec::Zstd] {
        let frame = match codec {
            Codec::Lz4 => lz4_flex::block::compress(&data),
            Codec::Zstd => zstd::bulk::compress(&data, 3).unwrap(),
        };
        let format = Format { codec, crc: true, block_bytes: 4096 };
        let mut stored = frame.clone();
        stored.extend_from_slice(&crc::raw(crc::BLOCK_SEED, &frame).to_le_bytes());
        let mut out = vec![0; 4096];
        decoder.decode(format, &stored, &mut out).unwrap();
        assert_eq!(out, data);
        for wrong in [4095, 4097] {
            assert!(decoder.decode(format, &stored, &mut vec![0; wrong]).is_err(), "{codec} into {wrong}");
        }
        stored[3] ^= 1;
        assert!(decoder.decode(format, &stored, &mut out).unwrap_err().contains("CRC"));
        assert!(decoder.decode(format, &[1, 2, 3], &mut out).is_err());
        assert!(decoder.decode(Format { crc: false, ..format }, &frame[..frame.len() / 2], &mut out).is_err());
    }
}
