"""Files that are broken as real ones are, and as hostile ones would be: random, but not only bytes.

Bytes alone seldom get past a checksum, a length or a parser. So numbers and words are changed where
they stand as text, counts where they stand as binary, parts of JSON and msgpack as values, opcodes of
pickles one by one, members of archives and entries of OCDBT within their checksums.
"""

import contextlib
import io
import itertools
import json
import pickle
import pickletools
import re
import struct
import zipfile

import msgpack
import tensorstore

_COUNTS = (0, 1, 2, 3, 7, 8, 64, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62)
_COUNTS += (2**63 - 1, 2**63, 2**64 - 1)
_WORDS = (b"float32", b"int4", b"object", b"F64", b"BF16", b"|O", b"<c16", b">f4", b"|V2", b"|V64")
_WORDS += (b"zarr3", b"blosc", b"true", b"null", b"..", b"/etc/passwd", b"\xff", b"")
_VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    2**64,
    10**30,
    0.5,
    1e308,
    "",
    "x",
    "..",
    "/x",
)
_VALUES += ([], {}, [[]], [0], [-1], [2**40, 2**40], {"a": None}, "float32", "\ud800", "a\0b")
_HEAD = 400  # Bytes at either end of a file, where most of what it says of itself stands.


def mutate(random, path):
    """Breaks a file in place, in one to three ways."""
    content = path.read_bytes()
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = _changed(random, content, path)
    path.write_bytes(content)


def _changed(random, content, path=None):
    ways = [_bytes, _bytes, _number, _word, _count, _count]
    if content[:1] in (b"{", b"["):
        ways += [_json] * 4
    if content[8:9] == b"{":
        ways += [_headed_json] * 6
    if content[:2] == b"PK":
        ways += [_member] * 6
    if content[:1] == b"\x80" and path is not None and path.suffix != ".msgpack":
        ways += [_pickle] * 6
    if content[:1] and 0x80 < content[0] < 0x90:
        ways += [_msgpack] * 4
    if path is not None and path.name == "manifest.ocdbt":
        ways += [lambda random, content: _entry(random, content, path)] * 20
    way = random.choice(ways)
    try:
        return way(random, content)
    # What was broken before may be no JSON, archive or pickle any longer.
    except Exception:
        return _bytes(random, content)


def _place(random, size):
    if random.random() < 0.3 or size <= 2 * _HEAD:
        return random.randrange(max(size, 1))
    place = random.randrange(_HEAD)
    return place if random.random() < 0.6 else size - 1 - place


def _bytes(random, content):
    at, held = _place(random, len(content)), bytearray(content)
    end = at + random.choice((1, 2, 4, 8, 16, 40, 200))
    match random.choice(("byte", "bit", "cut", "out", "in", "twice", "swap", "more")):
        case "byte" if held:
            held[at] = random.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, random.randrange(256)))
        case "bit" if held:
            held[at] ^= 1 << random.randrange(8)
        case "cut":
            del held[at:]
        case "out":
            del held[at:end]
        case "in":
            held[at:at] = random.randbytes(random.choice((1, 2, 8)))
        case "twice":
            to = _place(random, len(content))
            held[to:to] = content[at:end]
        case "swap":
            to = _place(random, len(content))
            held[at : at + 8], held[to : to + 8] = content[to : to + 8], content[at : at + 8]
        case "more":
            held += random.choice((b"\0", b"\0" * 4096, content))
    return bytes(held)


def _count(random, content):
    """Writes a whole number over a binary one: one that says how many, how long, or where."""
    at, form = (
        _place(random, len(content)),
        random.choice(("<B", "<H", "<I", "<Q", ">H", ">I", ">Q")),
    )
    size = struct.calcsize(form)
    if len(content) < at + size:
        return content[:-1]
    (was,) = struct.unpack_from(form, content, at)
    is_near = random.random() < 0.4
    now = was + random.choice((-8, -1, 1, 4, len(content))) if is_near else random.choice(_COUNTS)
    number = (now % (1 << (8 * size))).to_bytes(size, "little" if form[0] == "<" else "big")
    return content[:at] + number + content[at + size :]


def _replaced(random, content, pattern, new):
    found = list(re.finditer(pattern, content))
    if not found:
        return _bytes(random, content)
    match = random.choice(found)
    return content[: match.start()] + new(match) + content[match.end() :]


def _number(random, content):
    def new(match):
        was = int(match[0])
        number = random.choice((*_COUNTS, was + 1, was - 1, was * 2, -was, 10**40))
        text = str(number).encode()
        # Of the same length, most often: else what lies behind moves.
        return text[: len(match[0])].rjust(len(match[0])) if random.random() < 0.5 else text

    return _replaced(random, content, rb"\d{1,12}", new)


def _word(random, content):
    words = re.findall(rb"[A-Za-z_][\w./]{2,40}", content)
    other = random.choice((*_WORDS, *words))

    def new(match):
        fits = random.random() < 0.5
        return other[: len(match[0])].ljust(len(match[0])) if fits else other

    return _replaced(random, content, rb"[A-Za-z_<>|][\w./]{2,40}", new)


def _json(random, content):
    return json.dumps(changed_value(random, json.loads(content))).encode()


def _headed_json(random, content):
    """Changes the header of safetensors, whose length then is right."""
    (length,) = struct.unpack_from("<Q", content)
    header = _json(random, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _msgpack(random, content):
    tree = msgpack.unpackb(content, strict_map_key=False)
    return msgpack.packb(changed_value(random, tree, _msgpack))


def changed_value(random, tree, inner=None):
    """Returns a tree of JSON, or msgpack, that is another at one place."""
    kinds = dict | list | msgpack.ExtType
    if not isinstance(tree, kinds) or not tree or random.random() < 0.1:
        if isinstance(tree, int) and random.random() < 0.5:
            return random.choice((*_COUNTS, tree + 1, tree - 1, -tree))
        return random.choice(_VALUES)
    if isinstance(tree, msgpack.ExtType):
        code = random.choice((tree.code,) * 4 + (0, 2, 3, 99))
        return msgpack.ExtType(code, inner(random, tree.data))
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key, other = random.choice(keys), random.choice(keys)
    made = tree.copy()
    match random.choice(("into", "into", "into", "into", "gone", "other", "new")):
        case "into":
            made[key] = changed_value(random, tree[key], inner)
        case "gone":
            del made[key]
        case "other":
            made[key] = tree[other]
        case "new" if isinstance(tree, dict):
            made[random.choice(("x", "", "a/b", "..", "__metadata__"))] = tree[key]
        case "new":
            made.append(tree[key])
    return made


def _pickle(random, content):
    """Changes the opcodes of pickles: one is left out, moved, doubled, or has another argument."""
    places, stream = [], io.BytesIO(content)
    with contextlib.suppress(ValueError):  # Old files have several, and then values.
        while True:
            places += [place for _, _, place in pickletools.genops(stream)]
    cuts = [*places, places[-1] + 1]  # The last is STOP; what comes after it stays.
    parts = [content[a:b] for a, b in itertools.pairwise(cuts)]
    parts = [part for part in parts if part[:1] != pickle.FRAME]  # Which say how long all is.
    at, to = random.randrange(len(parts)), random.randrange(len(parts))
    match random.choice(("out", "swap", "twice", "argument", "argument", "opcode")):
        case "out":
            del parts[at]
        case "swap":
            parts[at], parts[to] = parts[to], parts[at]
        case "twice":
            parts.insert(to, parts[at])
        case "argument":
            at = random.choice([n for n, part in enumerate(parts) if len(part) > 1])
            way = random.choice((_count, _number, _word, _bytes))
            parts[at] = parts[at][:1] + way(random, parts[at][1:])
        case "opcode":
            code = random.choice(pickletools.opcodes).code.encode("latin1")
            parts[at] = code + parts[at][1:]
    return b"".join(parts) + content[cuts[-1] :]


def _member(random, content):
    """Changes a member of an archive, and writes the archive as it would be with that."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        infos = old.infolist()
        inner = [info for info in infos if info.filename.endswith("data.pkl")]
        chosen = random.choice(inner if inner and random.random() < 0.8 else infos)
        for info in infos:
            data = old.read(info)
            if info is chosen:
                is_pickle = data[:1] == b"\x80" and random.random() < 0.8
                data = (_pickle if is_pickle else _changed)(random, data)
            new.writestr(info, data)
    return made.getvalue()


def _entry(random, content, path):
    """Changes an entry of a database, OCDBT, which then has its checksums right."""
    base = {"driver": "file", "path": f"{path.parent}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = store.list().result()
    key = random.choice(keys)
    is_header = [k for k in keys if k.endswith((b".zarray", b"zarr.json"))]
    if is_header and random.random() < 0.8:
        key = random.choice(is_header)
    store[key] = _changed(random, store[key])
    return path.read_bytes()
