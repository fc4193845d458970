"""Ways to break a video: each takes the bytes of a good file and a random generator, and gives the bytes of a bad one.

`MUTATIONS` names them all, with the formats they apply to; the campaign in mutations.py runs them. A file in boxes
(MP4, Matroska, AVI) is taken apart into nodes and written again, so that a box can be missing, doubled, misplaced or
lie about its size while everything around it still fits.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Random = np.random.Generator
Damage = Callable[[bytes, Random], bytes]

_MP4_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"mvex", b"moof", b"traf"}
_MP4_VIDEO_ENTRIES = {b"avc1", b"hev1", b"hvc1", b"mp4v", b"av01", b"vp09"}
# fmt: off
_EBML_PARENTS = {bytes.fromhex(name) for name in (
    "18538067", "114D9B74", "4DBB", "1549A966", "1654AE6B", "AE", "E0", "1F43B675", "A0", "1C53BB6B", "BB", "B7",
)}
# fmt: on
_HUGE = (0, 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass
class Node:
    """A box, element or chunk: its name, the bytes before its children (all bytes of a leaf), and the children."""

    kind: bytes
    payload: bytes
    children: list["Node"] = field(default_factory=list)
    declared: int | None = None
    """Size to be written in place of the true one."""

    def walk(self) -> Iterator["Node"]:
        """This node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def parse_mp4(data: bytes, begin: int = 0, end: int | None = None) -> list[Node]:
    """Boxes of an MP4; the index comes after the media data, so that it may grow without moving them."""
    nodes, at, end = [], begin, len(data) if end is None else end
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if size == 1:
            size, body = struct.unpack_from(">Q", data, at + 8)[0], at + 16
        stop = min(at + size, end) if size >= 8 else end
        prefix = 0 if kind in _MP4_PARENTS else 8 if kind == b"stsd" else 78 if kind in _MP4_VIDEO_ENTRIES else None
        if prefix is None:
            nodes.append(Node(kind, data[body:stop]))
        else:
            nodes.append(Node(kind, data[body : body + prefix], parse_mp4(data, body + prefix, stop)))
        at = stop
    if begin == 0 and [node.kind for node in nodes if node.kind in (b"moov", b"mdat")][:1] == [b"moov"]:
        place = next(index for index, node in enumerate(nodes) if node.kind == b"moov")
        moov = nodes[place]
        nodes[place] = Node(b"free", bytes(len(write_mp4([moov])) - 8))
        nodes.append(moov)
    return nodes


def write_mp4(nodes: list[Node]) -> bytes:
    """The boxes as bytes; a declared size beyond 32 bits is written in the long form."""
    out = b""
    for node in nodes:
        body = node.payload + write_mp4(node.children)
        declared = len(body) + 8 if node.declared is None else node.declared
        long = struct.pack(">Q", declared) if declared >= 2**32 else b""
        out += struct.pack(">I4s", 1 if long else declared, node.kind) + long + body
    return out


def parse_ebml(data: bytes, begin: int = 0, end: int | None = None) -> list[Node]:
    """Elements of a Matroska or WebM file."""
    nodes, at, end = [], begin, len(data) if end is None else end
    while at < end and data[at]:
        width = 9 - data[at].bit_length()
        kind, at = data[at : at + width], at + width
        if at >= end or not data[at]:
            break
        width = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
        at += width
        stop = end if size == (1 << 7 * width) - 1 else min(at + size, end)
        if kind in _EBML_PARENTS:
            nodes.append(Node(kind, b"", parse_ebml(data, at, stop)))
        else:
            nodes.append(Node(kind, data[at:stop]))
        at = stop
    return nodes


def write_ebml(nodes: list[Node]) -> bytes:
    """The elements as bytes, sizes in their long form."""
    out = b""
    for node in nodes:
        body = node.payload + write_ebml(node.children)
        declared = min(len(body) if node.declared is None else node.declared, 2**56 - 1)
        out += node.kind + (declared | 1 << 56).to_bytes(8, "big") + body
    return out


def parse_riff(data: bytes, begin: int = 0, end: int | None = None) -> list[Node]:
    """Chunks of an AVI file."""
    nodes, at, end = [], begin, len(data) if end is None else end
    while at + 8 <= end:
        kind, size = struct.unpack_from("<4sI", data, at)
        stop = min(at + 8 + size, end)
        if kind in (b"RIFF", b"LIST"):
            nodes.append(Node(kind, data[at + 8 : at + 12], parse_riff(data, at + 12, stop)))
        else:
            nodes.append(Node(kind, data[at + 8 : stop]))
        at = stop + size % 2
    return nodes


def write_riff(nodes: list[Node]) -> bytes:
    """The chunks as bytes."""
    out = b""
    for node in nodes:
        body = node.payload + write_riff(node.children)
        declared = len(body) if node.declared is None else min(node.declared, 2**32 - 1)
        out += struct.pack("<4sI", node.kind, declared) + body + bytes(len(body) % 2)
    return out


def container_of(data: bytes) -> str:
    """mp4, ebml, riff, or other: what the first bytes say."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
        return "mp4"
    return {b"\x1aE\xdf\xa3": "ebml", b"RIFF": "riff"}.get(data[:4], "other")


_TREES = {"mp4": (parse_mp4, write_mp4), "ebml": (parse_ebml, write_ebml), "riff": (parse_riff, write_riff)}


def in_nodes(damage: Callable[[list[Node], Random], None]) -> Damage:
    """A damage to nodes as one to bytes."""

    def apply(data: bytes, random: Random) -> bytes:
        parse, write = _TREES[container_of(data)]
        nodes = parse(data)
        damage(nodes, random)
        return write(nodes)

    return apply


def all_nodes(nodes: list[Node]) -> list[Node]:
    """Every node of a file."""
    return [each for node in nodes for each in node.walk()]


def named(nodes: list[Node], *kinds: bytes) -> list[Node]:
    """Every node of these kinds, wherever it stands."""
    return [node for node in all_nodes(nodes) if node.kind in kinds]


def _siblings(nodes: list[Node], random: Random) -> list[Node]:
    """One list of nodes with the same parent."""
    lists = [nodes, *(node.children for node in all_nodes(nodes) if node.children)]
    return lists[random.integers(len(lists))]


def remove_node(nodes: list[Node], random: Random) -> None:
    siblings = _siblings(nodes, random)
    del siblings[random.integers(len(siblings))]


def double_node(nodes: list[Node], random: Random) -> None:
    siblings = _siblings(nodes, random)
    siblings.insert(int(random.integers(len(siblings) + 1)), siblings[random.integers(len(siblings))])


def swap_nodes(nodes: list[Node], random: Random) -> None:
    everything = all_nodes(nodes)
    for _ in range(int(random.integers(1, 4))):
        one, other = (everything[index] for index in random.integers(len(everything), size=2))
        one.kind, other.kind = other.kind, one.kind
        if not one.children and not other.children:
            one.payload, other.payload = other.payload, one.payload
            one.kind, other.kind = (one.kind, other.kind) if random.integers(2) else (other.kind, one.kind)


def rename_node(nodes: list[Node], random: Random) -> None:
    node = _any(all_nodes(nodes), random)
    node.kind = bytes([node.kind[0] ^ int(random.integers(1, 256)) & 15]) + node.kind[1:]


def lie_about_size(nodes: list[Node], random: Random) -> None:
    node = _any(all_nodes(nodes), random)
    node.declared = int(random.choice([0, 1, 7, 9, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1]))


def bury_node(nodes: list[Node], random: Random) -> None:
    """Boxes within boxes, hundreds deep."""
    siblings = _siblings(nodes, random)
    place = int(random.integers(len(siblings)))
    if siblings[place].children:
        inner = siblings[place]
        for _ in range(300):
            inner = Node(inner.kind, siblings[place].payload, [inner])
        siblings[place] = inner


def shrink_leaf(nodes: list[Node], random: Random) -> None:
    node = _any([node for node in all_nodes(nodes) if not node.children and len(node.payload) > 1], random)
    node.payload = node.payload[: random.integers(len(node.payload))]


def garble_leaf(nodes: list[Node], random: Random) -> None:
    """A small leaf, which is a header and not pictures, filled with noise."""
    leaves = [node for node in all_nodes(nodes) if not node.children and 0 < len(node.payload) < 5000]
    for node in [_any(leaves, random) for _ in range(int(random.integers(1, 4)))]:
        node.payload = random.bytes(len(node.payload))


def mp4_size(nodes: list[Node], random: Random) -> None:
    """Width and height in the track's and the sample's description."""
    width, height = (int(side) for side in random.choice([0, 1, 30_000, 65_535], 2))
    for node in named(nodes, *_MP4_VIDEO_ENTRIES):
        node.payload = _put(node.payload, 24, ">HH", width, height)
    for node in named(nodes, b"tkhd"):
        node.payload = node.payload[:-8] + struct.pack(">II", width << 16, height << 16)


def mp4_counts(nodes: list[Node], random: Random) -> None:
    """The number of rows that a table says it has."""
    for node in named(nodes, b"stts", b"stsc", b"ctts", b"stss", b"stco", b"elst", b"stsd", b"dref"):
        if random.integers(2):
            node.payload = _put(node.payload, 4, ">I", _huge(random))
    for node in named(nodes, b"stsz"):
        node.payload = _put(node.payload, 8, ">I", _huge(random))


def mp4_samples(nodes: list[Node], random: Random) -> None:
    """A number of samples of one size, without a table that would have to be as long."""
    count = int(random.choice([10**6, 10**7, 5 * 10**7, 10**8, 10**9]))
    size = int(random.integers(3))
    for node in named(nodes, b"stsz"):
        node.payload = struct.pack(">III", 0, size, count)
    for node in named(nodes, b"stts"):
        node.payload = struct.pack(">IIII", 0, 1, count, 1)
    if random.integers(2):
        for node in named(nodes, b"stsc"):
            node.payload = struct.pack(">IIIII", 0, 1, 1, count, 1)


def mp4_chunks(nodes: list[Node], random: Random) -> None:
    """Where the data of the chunks are said to begin."""
    for node in named(nodes, b"stco"):
        (count,) = struct.unpack_from(">I", node.payload, 4)
        style = random.integers(3)
        places = random.integers(0, 2**32, count) if style == 0 else np.full(count, 48 if style == 1 else 2**32 - 1)
        node.payload = node.payload[:8] + places.astype(">u4").tobytes()


def mp4_overlap(nodes: list[Node], random: Random) -> None:
    """Many chunks of many one-byte samples, all in the same place: a small file of very many samples."""
    chunks, each = 20_000, int(random.choice([1, 5, 20, 1000]))
    for node in named(nodes, b"stco"):
        node.payload = struct.pack(">II", 0, chunks) + np.full(chunks, 48, ">u4").tobytes()
    for node in named(nodes, b"stsz"):
        node.payload = struct.pack(">III", 0, 1, chunks * each)
    for node in named(nodes, b"stsc"):
        node.payload = struct.pack(">IIIII", 0, 1, 1, each, 1)
    for node in named(nodes, b"stts"):
        node.payload = struct.pack(">IIII", 0, 1, chunks * each, 1)


def mp4_durations(nodes: list[Node], random: Random) -> None:
    for node in named(nodes, b"mvhd", b"mdhd"):
        node.payload = _put(node.payload, 16, ">I", _huge(random))
    for node in named(nodes, b"tkhd"):
        node.payload = _put(node.payload, 20, ">I", _huge(random))


def mp4_timescale(nodes: list[Node], random: Random) -> None:
    for node in named(nodes, b"mvhd", b"mdhd"):
        node.payload = _put(node.payload, 12, ">I", _huge(random))


def mp4_edits(nodes: list[Node], random: Random) -> None:
    """An edit list of few or many random rows: empty edits, repeats, times far away and negative."""
    rows = int(random.choice([1, 3, 100, 2000, 20_000]))
    reach = 2**31 if random.integers(2) else 20_000
    table = b"".join(
        struct.pack(">Iihh", duration, time, rate, 0)
        for duration, time, rate in zip(
            random.integers(0, reach, rows).tolist(),
            random.integers(-1 if reach < 2**31 else -reach, reach, rows).tolist(),
            random.choice([1, 1, 1, 0, -1, 100], rows).tolist(),
            strict=True,
        )
    )
    edits = Node(b"edts", b"", [Node(b"elst", struct.pack(">II", 0, rows) + table)])
    for track in named(nodes, b"trak"):
        track.children = [node for node in track.children if node.kind != b"edts"]
        track.children.insert(1, edits)


def mp4_times(nodes: list[Node], random: Random) -> None:
    """When samples are decoded and shown: steps of nothing, steps of years, and shown long before and after."""
    for node in named(nodes, b"stts"):
        node.payload = _put(node.payload, 12, ">I", _huge(random))
    (count,) = struct.unpack_from(">I", named(nodes, b"stsz")[0].payload, 8)
    count = min(count, 100_000)
    offsets = random.integers(-(2**31), 2**31, count) if random.integers(2) else random.integers(-9999, 9999, count)
    rows = np.stack([np.ones(count, np.int64), offsets], axis=1).astype(">i4").tobytes()
    for table in named(nodes, b"stbl"):
        table.children = [node for node in table.children if node.kind != b"ctts"]
        table.children.append(Node(b"ctts", struct.pack(">II", 1 << 24, count) + rows))


def ebml_size(nodes: list[Node], random: Random) -> None:
    for node in named(nodes, b"\xb0", b"\xba"):
        node.payload = int(random.choice([0, 1, 30_000, 65_535, 2**31 - 1, 2**40])).to_bytes(8, "big")


def ebml_times(nodes: list[Node], random: Random) -> None:
    """The clock, the length, the frame rate and the clusters' times."""
    for node in named(nodes, b"\xe7", b"\x2a\xd7\xb1", b"\x23\xe3\x83"):
        if random.integers(2):
            node.payload = (0, 1, 2**31, 2**63 - 1, 2**64 - 1)[random.integers(5)].to_bytes(8, "big")
    for node in named(nodes, b"\x44\x89"):
        node.payload = struct.pack(">d", random.choice([0.0, -1.0, 1e300, float("nan"), float("inf")]))


def riff_header(nodes: list[Node], random: Random) -> None:
    """Frame counts, rates, sizes in the AVI and stream headers."""
    for node in named(nodes, b"avih", b"strh", b"strf"):
        for _ in range(int(random.integers(1, 4))):
            place = 4 * int(random.integers(len(node.payload) // 4))
            node.payload = _put(node.payload, place, "<I", _huge(random))


def riff_size(nodes: list[Node], random: Random) -> None:
    width, height = (int(side) for side in random.choice([0, 1, 30_000, 2**31 - 1], 2))
    for node in named(nodes, b"strf"):
        node.payload = _put(node.payload, 4, "<II", width, height)
    for node in named(nodes, b"avih"):
        node.payload = _put(node.payload, 32, "<II", width, height)


def flip_bits(data: bytes, random: Random, begin: int, end: int, count: int) -> bytes:
    """`count` bits of data[begin:end] turned over."""
    out = bytearray(data)
    for place in random.integers(begin, max(end, begin + 1), count):
        if place < len(out):
            out[place] ^= 1 << int(random.integers(8))
    return bytes(out)


def flip_head(data: bytes, random: Random) -> bytes:
    return flip_bits(data, random, 0, min(1024, len(data)), int(random.integers(1, 40)))


def flip_body(data: bytes, random: Random) -> bytes:
    return flip_bits(data, random, len(data) // 10, len(data) * 9 // 10, int(random.integers(1, 200)))


def flip_tail(data: bytes, random: Random) -> bytes:
    return flip_bits(data, random, max(0, len(data) - 2048), len(data), int(random.integers(1, 40)))


def flip_everywhere(data: bytes, random: Random) -> bytes:
    return flip_bits(data, random, 0, len(data), max(1, int(len(data) * 10 ** random.uniform(-5, -2))))


def blank_block(data: bytes, random: Random) -> bytes:
    """Blocks of a disk that came back as zeros or as something else."""
    out = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        size = int(random.choice([16, 512, 4096]))
        place = int(random.integers(len(out)))
        filling = bytes(size) if random.integers(2) else random.bytes(size)
        out[place : place + size] = filling[: len(out) - place]
    return bytes(out)


def cut_head(data: bytes, random: Random) -> bytes:
    return data[_place(data, random) :]


def cut_tail(data: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def cut_middle(data: bytes, random: Random) -> bytes:
    first, last = sorted(_place(data, random) for _ in range(2))
    return data[:first] + data[last:]


def repeat_block(data: bytes, random: Random) -> bytes:
    first, last = sorted(_place(data, random) for _ in range(2))
    return data[:last] + data[first:]


def shuffle_blocks(data: bytes, random: Random) -> bytes:
    """Blocks in another order; of a transport stream, its packets."""
    size = 188 if data[:1] == b"G" else int(random.choice([512, 4096, 32768]))
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    for _ in range(int(random.integers(1, 20))):
        one, other = random.integers(len(blocks), size=2)
        blocks[one], blocks[other] = blocks[other], blocks[one]
    return b"".join(blocks)


def append_garbage(data: bytes, random: Random) -> bytes:
    return data + random.bytes(int(random.integers(1, 200_000)))


def huge_pictures(data: bytes, random: Random) -> bytes:
    return declare_pictures(
        data, *((30_000, 30_000), (16_000, 16_000), (9_000, 9_000), (65_535, 16))[random.integers(4)]
    )


def declare_pictures(data: bytes, width: int, height: int) -> bytes:
    """The file with another size of its pictures in the codec's own headers, wherever they stand."""
    out = bytearray(data)
    for place in _occurrences(data, b"\x9d\x01\x2a"):  # VP8 key frame
        struct.pack_into("<HH", out, place + 3, width & 0x3FFF, height & 0x3FFF)
    for place in _occurrences(data, b"\x49\x83\x42"):  # VP9 key frame: 4 bits, then width - 1 and height - 1
        bits = int.from_bytes(out[place + 3 : place + 8], "big")
        out[place + 3 : place + 8] = (bits >> 36 << 36 | (width - 1) << 20 | (height - 1) << 4 | bits & 15).to_bytes(5)
    for place in _occurrences(data, b"\xff\xc0\x00\x11\x08"):  # JPEG frame header
        struct.pack_into(">HH", out, place + 5, height, width)
    for place in _occurrences(data, b"\x00\x00\x01\xb3"):  # MPEG-2 sequence header, 12 bits each
        out[place + 4 : place + 7] = (4095 << 12 | 4095).to_bytes(3)
    changed = bytes(out)
    for sps in _parameter_sets(data):
        changed = changed.replace(sps, _resize_sps(sps, width, height))
    return changed


def _parameter_sets(data: bytes) -> list[bytes]:
    """The H.264 and HEVC sequence parameter sets in a file: after a start code, or in the MP4's decoder record."""
    found = []
    for place in _occurrences(data, b"avcC"):
        (length,) = struct.unpack_from(">H", data, place + 10)
        found.append(data[place + 12 : place + 12 + length])
    for place in _occurrences(data, b"\x42\x01\x01") + _occurrences(data, b"\x00\x00\x01\x67"):
        begin = place if data[place : place + 1] == b"\x42" else place + 3
        ends = [end for end in (data.find(b"\x00\x00\x01", begin), begin + 64) if end > 0]
        found.append(data[begin : min(ends)].rstrip(b"\x00"))
    return [sps for sps in dict.fromkeys(found) if len(sps) > 8]


def _resize_sps(sps: bytes, width: int, height: int) -> bytes:
    """The parameter set with another picture size, as long as before: later fields are cut off, as damage is."""
    plain = sps.replace(b"\x00\x00\x03", b"\x00\x00")
    bits = "".join(f"{byte:08b}" for byte in plain)
    if sps[0] == 0x42:  # HEVC: 2 bytes of header, 1 of layers, 12 of profile; then id, chroma, width, height
        at = _skip_golomb(bits, 8 * 15, 2)
        sizes = _golomb(width) + _golomb(height)
    else:  # H.264: header, profile, constraints, level; then id, what the high profiles add, frame numbering
        at = _skip_golomb(bits, 32, 1)
        if plain[1] in (100, 110, 122, 244):
            at = _skip_golomb(bits, at, 3) + 2
        numbering = _skip_golomb(bits, at, 1)
        at = _skip_golomb(bits, numbering, 2 if bits[numbering:].startswith("1") else 1)
        at = _skip_golomb(bits, at, 1) + 1
        sizes = _golomb(width // 16 - 1) + _golomb(height // 16 - 1)
    rest = bits[_skip_golomb(bits, at, 2) :]
    changed = (bits[:at] + sizes + rest)[: 8 * len(plain)].ljust(8 * len(plain), "0")
    out = int(changed, 2).to_bytes(len(plain), "big")
    for _ in range(len(sps) - len(plain)):
        out += b"\x80"
    return out


def _golomb(value: int) -> str:
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


def _skip_golomb(bits: str, at: int, count: int) -> int:
    for _ in range(count):
        zeros = len(bits[at:]) - len(bits[at:].lstrip("0"))
        at += 2 * zeros + 1
    return at


def _occurrences(data: bytes, mark: bytes) -> list[int]:
    places, at = [], data.find(mark)
    while at >= 0 and at + 16 < len(data):
        places.append(at)
        at = data.find(mark, at + 1)
    return places


def _place(data: bytes, random: Random) -> int:
    """Somewhere in the data, as often in its first thousandth as in its first tenth or near its end."""
    share = 10 ** random.uniform(-4, 0)
    return int(len(data) * (share if random.integers(2) else 1 - share))


def _any(nodes: list[Node], random: Random) -> Node:
    return nodes[random.integers(len(nodes))]


def _huge(random: Random) -> int:
    return int(random.choice(_HUGE))


def _put(payload: bytes, at: int, layout: str, *values: int) -> bytes:
    """The payload with values written over it; unchanged where it is too short."""
    packed = struct.pack(layout, *values)
    return payload[:at] + packed + payload[at + len(packed) :] if len(payload) >= at + len(packed) else payload


def png(width: int, height: int, rows: bytes | None = None, *, bit_depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that declares this size and holds these compressed rows, or none."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)]
    chunks += [b"IDAT" + (zlib.compress(b"") if rows is None else rows), b"IEND"]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def empty(data: bytes, random: Random) -> bytes:
    return b""


def few_bytes(data: bytes, random: Random) -> bytes:
    return data[: random.integers(1, 33)]


def garbage(data: bytes, random: Random) -> bytes:
    return random.bytes(int(random.integers(1, 300_000)))


def garbage_behind_a_head(data: bytes, random: Random) -> bytes:
    head = int(random.integers(4, 64))
    return data[:head] + random.bytes(int(random.integers(1, 300_000)))


def text(data: bytes, random: Random) -> bytes:
    """What is found under a video's name when a download went wrong, and lists that name other files."""
    return (
        b"<!DOCTYPE html><title>404 Not Found</title>" * 40,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile nothing.mp4\nfile /dev/zero\n",
        b"WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n",
        b"YUV4MPEG2 W30000 H30000 F25:1 C420\nFRAME\n" + bytes(1000),
        b"\x1f\x8b\x08\x00" + bytes(2000),
        b"\x7fELF\x02\x01\x01" + bytes(2000),
        b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(6) + b"\x2c" + bytes(4) + b"\xff\xff\xff\xff\x00\x08" + bytes(99),
        png(30_000, 30_000),
        b"BM" + struct.pack("<IIIIiiHHI", 100, 0, 54, 40, 30_000, 30_000, 1, 24, 0) + bytes(500),
        data.decode("latin-1").encode("utf-8"),
    )[random.integers(12)]


@dataclass(frozen=True)
class Mutation:
    """One way to break a file."""

    damage: Damage
    containers: frozenset[str] = frozenset({"mp4", "ebml", "riff", "other"})
    """Kinds of files that it can be done to."""


def _on(*containers: str, damage: Callable[[list[Node], Random], None]) -> Mutation:
    return Mutation(in_nodes(damage), frozenset(containers))


_BOXED = ("mp4", "ebml", "riff")
MUTATIONS: dict[str, Mutation] = {
    "bits flipped in the head": Mutation(flip_head),
    "bits flipped in the body": Mutation(flip_body),
    "bits flipped in the tail": Mutation(flip_tail),
    "bits flipped everywhere": Mutation(flip_everywhere),
    "blocks blanked": Mutation(blank_block),
    "head cut": Mutation(cut_head),
    "tail cut": Mutation(cut_tail),
    "middle cut": Mutation(cut_middle),
    "block repeated": Mutation(repeat_block),
    "blocks shuffled": Mutation(shuffle_blocks),
    "garbage appended": Mutation(append_garbage),
    "box removed": _on(*_BOXED, damage=remove_node),
    "box doubled": _on(*_BOXED, damage=double_node),
    "boxes swapped": _on(*_BOXED, damage=swap_nodes),
    "box renamed": _on(*_BOXED, damage=rename_node),
    "box buried": _on(*_BOXED, damage=bury_node),
    "box shortened": _on(*_BOXED, damage=shrink_leaf),
    "header filled with noise": _on(*_BOXED, damage=garble_leaf),
    "box size wrong": _on(*_BOXED, damage=lie_about_size),
    "MP4: picture size huge": _on("mp4", damage=mp4_size),
    "MP4: table counts huge": _on("mp4", damage=mp4_counts),
    "MP4: samples without number": _on("mp4", damage=mp4_samples),
    "MP4: samples upon each other": _on("mp4", damage=mp4_overlap),
    "MP4: chunks elsewhere": _on("mp4", damage=mp4_chunks),
    "MP4: durations huge": _on("mp4", damage=mp4_durations),
    "MP4: clock mad": _on("mp4", damage=mp4_timescale),
    "MP4: edit list mad": _on("mp4", damage=mp4_edits),
    "MP4: times mad": _on("mp4", damage=mp4_times),
    "Matroska: picture size huge": _on("ebml", damage=ebml_size),
    "Matroska: times mad": _on("ebml", damage=ebml_times),
    "AVI: header mad": _on("riff", damage=riff_header),
    "AVI: picture size huge": _on("riff", damage=riff_size),
    "codec: picture size huge": Mutation(huge_pictures),
    "empty": Mutation(empty),
    "few bytes": Mutation(few_bytes),
    "garbage": Mutation(garbage),
    "garbage behind a true head": Mutation(garbage_behind_a_head),
    "another kind of file": Mutation(text),
}
"""Name of a mutation of a file, and what it does."""


def write_bad_images(folder: Path, random: Random) -> str:
    """A folder of numbered images with something wrong in it; says what."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(8):
        shade = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        shade.save(folder / f"frame_{number:03d}.{'jpg' if number % 2 else 'png'}")
    victim = folder / f"frame_{random.integers(8):03d}"
    victim = next(path for path in sorted(folder.iterdir()) if path.stem == victim.name)
    data = victim.read_bytes()
    kinds: dict[str, Callable[[], bytes | None]] = {
        "declared huge": lambda: png(30_000, 30_000),
        "declared just below Pillow's error": lambda: png(13_000, 13_000),
        "declared wider than any picture": lambda: png(2**31 - 1, 2**31 - 1),
        "truly huge, well compressed": lambda: png(
            12_000, 12_000, zlib.compress(bytes(1501 * 12_000)), bit_depth=1, colour=0
        ),
        "JPEG declared huge": lambda: _huge_jpeg(folder),
        "truncated": lambda: data[: random.integers(1, len(data))],
        "empty": lambda: b"",
        "text": lambda: b"404 not found",
        "bits flipped": lambda: flip_bits(data, random, 0, len(data), 40),
        "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9000 9000\n%%EndComments\nshowpage\n",
        "of another size": lambda: _of_another_size(victim),
        "a folder": lambda: None,
    }
    kind = list(kinds)[random.integers(len(kinds))]
    content = kinds[kind]()
    if content is None:
        victim.unlink()
        victim.mkdir()
    else:
        victim.write_bytes(content)
    return kind


def _huge_jpeg(folder: Path) -> bytes:
    data = bytearray((folder / "frame_001.jpg").read_bytes())
    struct.pack_into(">HH", data, data.find(b"\xff\xc0\x00\x11\x08") + 5, 60_000, 60_000)
    return bytes(data)


def _of_another_size(victim: Path) -> bytes:
    from PIL import Image

    with Image.open(victim) as image:
        image.resize((97, 41)).save(victim)
    return victim.read_bytes()


IMAGES = "folder of images"
"""Name of the mutations that are not of one file but of a folder."""
