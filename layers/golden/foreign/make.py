"""The image that make.sh converts, as an OCI layout; and what is kept of a converted one."""

import gzip
import hashlib
import io
import json
import os
import random
import sys
import tarfile


def put(directory, data):
    digest = hashlib.sha256(data).hexdigest()
    with open(os.path.join(directory, "blobs", "sha256", digest), "wb") as blob:
        blob.write(data)
    return {"digest": "sha256:" + digest, "size": len(data)}


def member(tar, name, kind=tarfile.REGTYPE, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, len(data), 1500000000
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def lower():
    rng = random.Random(7)
    words = [bytes(rng.randrange(97, 123) for _ in range(rng.randrange(2, 9))) for _ in range(4000)]
    text = b" ".join(rng.choice(words) for _ in range(60000))
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member(tar, "usr/", tarfile.DIRTYPE, mode=0o755)
        member(tar, "usr/bin/", tarfile.DIRTYPE, mode=0o711, uid=3, gid=4)
        member(tar, "usr/bin/tool", data=rng.randbytes(70000), mode=0o4755)
        member(tar, "usr/bin/alias", tarfile.LNKTYPE, linkname="usr/bin/tool")
        member(tar, "usr/bin/link", tarfile.SYMTYPE, linkname="../lib/none", mode=0o777)
        member(tar, "usr/text", data=text, uid=1000, gid=70000, mtime=1600000000.5)
        member(tar, "usr/empty", mode=0o600)
        member(tar, "usr/zeros", data=bytes(150000), mode=0o640)
        member(tar, "usr/" + "n" * 120, data=b"a long name\n")
        member(tar, "usr/\u00fcnic\u00f6de", data=b"unicode\n")
        member(tar, "usr/attr", data=b"attributes\n", pax_headers={"SCHILY.xattr.user.note": "why not"})
        for directory in ("dev/", "run/", "etc/"):
            member(tar, directory, tarfile.DIRTYPE, mode=0o755)
        member(tar, "dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        member(tar, "dev/disk", tarfile.BLKTYPE, devmajor=8, devminor=17, mode=0o660)
        member(tar, "run/pipe", tarfile.FIFOTYPE, mode=0o600)
        for nth in range(40):
            member(tar, f"etc/file-{nth:02}", data=b"%d\n" % nth * (nth + 1))
    return raw.getvalue()


def upper():
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member(tar, "etc/", tarfile.DIRTYPE, mode=0o750)
        member(tar, "etc/.wh.file-03")
        member(tar, "usr/", tarfile.DIRTYPE, mode=0o755)
        member(tar, "usr/bin/", tarfile.DIRTYPE, mode=0o755)
        member(tar, "usr/bin/.wh..wh..opq")
        member(tar, "usr/bin/new", data=b"#!/bin/sh\n", mode=0o755)
    return raw.getvalue()


def image(directory, plain):
    os.makedirs(os.path.join(directory, "blobs", "sha256"))
    layers, diff_ids = [], []
    for data in (lower(), upper()):
        diff_ids.append("sha256:" + hashlib.sha256(data).hexdigest())
        packed = put(directory, data if plain else gzip.compress(data, 6, mtime=0))
        kind = "application/vnd.oci.image.layer.v1.tar" + ("" if plain else "+gzip")
        layers.append({"mediaType": kind, **packed})
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", **put(directory, json.dumps(config).encode())}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    }
    manifest = {"mediaType": manifest["mediaType"], **put(directory, json.dumps(manifest).encode())}
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    with open(os.path.join(directory, "index.json"), "w") as index:
        json.dump({"schemaVersion": 2, "manifests": [manifest]}, index)
    with open(os.path.join(directory, "oci-layout"), "w") as layout:
        layout.write('{"imageLayoutVersion": "1.0.0"}')


def keep(layout, to):
    def blob(descriptor):
        with open(os.path.join(layout, "blobs", *descriptor["digest"].split(":")), "rb") as file:
            return file.read()

    with open(os.path.join(layout, "index.json")) as index:
        manifest = json.load(index)["manifests"][0]
    data = blob(manifest)
    while "manifests" in json.loads(data):
        data = blob(json.loads(data)["manifests"][0])
    for name, content in [("manifest.json", data), ("config.json", blob(json.loads(data)["config"]))]:
        with open(os.path.join(to, name), "wb") as file:
            file.write(content)
    for nth, layer in enumerate(json.loads(data)["layers"]):
        with open(os.path.join(to, f"layer{nth}"), "wb") as file:
            file.write(blob(layer))


def ztocs(blobs, to):
    manifests = []
    for name in os.listdir(blobs):
        with open(os.path.join(blobs, name), "rb") as file:
            data = file.read()
        if data.startswith(b"{\"schema"):
            manifests.append(data)
    (index,) = manifests
    with open(os.path.join(to, "index.json"), "wb") as file:
        file.write(index)
    with open(os.path.join(to, "manifest.json")) as file:
        layers = [layer["digest"] for layer in json.load(file)["layers"]]
    for ztoc in json.loads(index)["layers"]:
        nth = layers.index(ztoc["annotations"]["com.amazon.soci.image-layer-digest"])
        with open(os.path.join(blobs, ztoc["digest"].split(":")[1]), "rb") as file:
            data = file.read()
        with open(os.path.join(to, f"ztoc{nth}"), "wb") as file:
            file.write(data)


if sys.argv[1] == "--ztocs":
    ztocs(*sys.argv[2:])
elif sys.argv[1] == "--keep":
    keep(*sys.argv[2:])
else:
    image(sys.argv[1], "--plain" in sys.argv[2:])
