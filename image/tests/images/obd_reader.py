"""A second reader of OverlayBD layers, so that the Rust one is not its own judge: it shares no code with it, reads whole files into memory, and
believes nothing that it can check. Formats: docs/formats/overlaybd.md.

    obd_reader.py LAYER...    the layers of one device, the lowest first; prints the sha256 of the device and its size
"""

import hashlib
import struct
import subprocess
import sys

SECTOR = 512
LSMT = b"LSMT\x00\x01\x02\x00" + bytes.fromhex("657e63d29444084ca2d2c8ec4fcfae8a")
ZFILE = b"ZFile\x00\x01\x00" + b"tuji.yyf@Alibaba"
NOTHING = (1 << 50) - 1  # the offset of an entry that only fills the index up


class Wrong(Exception):
    pass


def need(holds, what):
    if not holds:
        raise Wrong(what)


def castagnoli():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC = castagnoli()


def crc(start, data):
    """CRC-32C as upstream computes it: inverted neither at the beginning nor at the end."""
    for byte in data:
        start = start >> 8 ^ CRC[(start ^ byte) & 255]
    return start


def without_tar(blob):
    """The content of the one file of a tar archive; what is no archive, as it is."""
    if blob[257:262] != b"ustar":
        return blob
    for at in range(0, len(blob), SECTOR):
        header = blob[at : at + SECTOR]
        summed = sum(header[:148]) + 8 * 32 + sum(header[156:])
        need(int(header[148:156].strip(b" \0"), 8) == summed, "a tar header has a wrong checksum")
        size = int(header[124:136].strip(b" \0") or b"0", 8)
        if header[156:157] == b"x":
            record = blob[at + SECTOR : at + SECTOR + size]
            length, _, rest = record.partition(b" ")
            need(int(length) == len(record) and rest.startswith(b"size="), "a pax record is not of a size")
            real, at = int(rest[5:]), at + 2 * SECTOR
            header, size = blob[at : at + SECTOR], real
        need(header[156:157] == b"0", "the archive begins with something else than a file")
        end = at + SECTOR + size
        need(not any(blob[end:]), "something follows the file")
        return blob[at + SECTOR : end]


def lz4_block(stored, expected):
    """One block of lz4 (lz4_Block_format): pairs of literals and a match before them, and literals at the end."""
    out, at = bytearray(), 0

    def length(nibble):
        nonlocal at
        total = nibble
        while nibble == 15:
            more = stored[at]
            at, total = at + 1, total + more
            if more != 255:
                break
        return total

    while True:
        token = stored[at]
        at += 1
        literals = length(token >> 4)
        out += stored[at : at + literals]
        at += literals
        if at >= len(stored):
            break
        distance = stored[at] | stored[at + 1] << 8
        at += 2
        match = length(token & 15) + 4
        need(0 < distance <= len(out), "a match begins before the block")
        period = bytes(out[-distance:])
        out += (period * (match // distance + 1))[:match]
    need(at == len(stored) and len(out) == expected, "an lz4 block has another length")
    return bytes(out)


def zstd_frames(stored, sizes):
    """Frames one after another decode to their contents one after another."""
    raw = subprocess.run(["zstd", "-dc"], input=b"".join(stored), stdout=subprocess.PIPE, check=True).stdout
    need(len(raw) == sum(sizes), "zstd frames have another length")
    return raw


def without_frames(blob):
    """The content of a ZFile; what is none, as it is."""
    if not blob.startswith(ZFILE):
        return blob
    header, trailer = blob[:SECTOR], blob[-SECTOR:]
    need(trailer.startswith(ZFILE), "the ZFile has no trailer")
    for page in (header, trailer):
        said = struct.unpack_from("<I", page, 28)[0]
        need(crc(0, page[:28] + bytes(4) + page[32:]) == said, "a page of the ZFile is damaged")
    flags = struct.unpack_from("<Q", header, 32)[0]
    need(struct.unpack_from("<Q", trailer, 32)[0] & 7 == 6, "the trailer is none")
    truth = header if flags & 8 else trailer
    table_at, count, size, table_crc = struct.unpack_from("<QQQI", truth, 40)
    block, codec, checked, dictionary = *struct.unpack_from("<IB", truth, 72), truth[88], truth[78]
    need(dictionary == 0 and count == -(-size // block), "the ZFile has another number of blocks")
    table = blob[table_at : table_at + 4 * count]
    need(crc(0, table) == table_crc and table_at + len(table) == len(blob) - SECTOR, "the jump table is damaged")
    at, stored, sizes = SECTOR, [], []
    for nth, taken in enumerate(struct.unpack(f"<{count}I", table)):
        piece = blob[at : at + taken]
        at += taken
        if checked:
            piece, said = piece[:-4], struct.unpack("<I", piece[-4:])[0]
            need(crc(100007, piece) == said, f"block {nth} is damaged")
        stored.append(piece)
        sizes.append(min(block, size - nth * block))
    need(at == table_at, "the blocks end elsewhere than the jump table begins")
    if codec == 2:
        return zstd_frames(stored, sizes)
    need(codec == 1, "the codec is unknown")
    return b"".join(lz4_block(*one) for one in zip(stored, sizes))


def extents(layer):
    """The size of the device (0: that of the layer below), and the extents: first sector, sectors, and where they are or None for zeros."""
    header, trailer = layer[:4096], layer[-4096:]
    need(header.startswith(LSMT) and trailer.startswith(LSMT), "the layer has no header or no trailer")
    flags = [struct.unpack_from("<I", page, 28)[0] & 7 for page in (header, trailer)]
    need(flags == [7, 6], f"the flags are {flags}")
    at, count, size = struct.unpack_from("<QQQ", trailer, 32)
    need(at % SECTOR == 0 and at + 16 * count == len(layer) - 4096 and count <= 1_000_000, "the index is elsewhere")
    found, end = [], 0
    for low, high in struct.iter_unpack("<QQ", layer[at : at + 16 * count]):
        first, sectors = low & NOTHING, low >> 50
        if first == NOTHING:
            continue
        place, is_zero = high & (1 << 55) - 1, high >> 55 & 1
        need(sectors > 0 and first >= end, "the extents are not in order")
        need(8 <= place and (is_zero or (place + sectors) * SECTOR <= at), "an extent is outside the data")
        end = first + sectors
        found.append((first, sectors, None if is_zero else place))
    return size, found


def device(paths):
    """The bytes of the device that these layers are together."""
    disk = bytearray()
    for path in paths:
        with open(path, "rb") as file:
            layer = without_frames(without_tar(file.read()))
        size, found = extents(layer)
        need(size % SECTOR == 0 and (size or disk), "the lowest layer says no size")
        if size:
            del disk[size:]
            disk.extend(bytes(size - len(disk)))
        for first, sectors, place in found:
            start, length = first * SECTOR, sectors * SECTOR
            need(start + length <= len(disk), "an extent is behind the end of the device")
            held = bytes(length) if place is None else layer[place * SECTOR : place * SECTOR + length]
            disk[start : start + length] = held
    return disk


if __name__ == "__main__":
    made = device(sys.argv[1:])
    print(hashlib.sha256(made).hexdigest(), len(made))
