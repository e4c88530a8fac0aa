"""Files of `torch.save` that call a function when they are unpickled, written by hand."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

GADGETS: dict[str, tuple[str, str, Callable[[str], tuple[Any, ...]]]] = {
    "os.system": ("os", "system", lambda canary: (f"touch {canary}",)),
    "posix.system": ("posix", "system", lambda canary: (f"touch {canary}",)),
    "subprocess.Popen": ("subprocess", "Popen", lambda canary: (["touch", canary],)),
    "builtins.exec": ("builtins", "exec", lambda canary: (f"open({canary!r}, 'w')",)),
    "builtins.eval": ("builtins", "eval", lambda canary: (f"open({canary!r}, 'w')",)),
    "builtins.open": ("builtins", "open", lambda canary: (canary, "w")),
    "io.open": ("io", "open", lambda canary: (canary, "w")),
    "os.mkdir": ("os", "mkdir", lambda canary: (canary,)),
    "shutil.copy": ("shutil", "copy", lambda canary: ("/etc/hostname", canary)),
    "timeit.timeit": ("timeit", "timeit", lambda canary: ("pass", f"open({canary!r}, 'w')")),
    "runpy.run_path": ("runpy", "run_path", lambda canary: (canary + ".py",)),
    "torch.save": ("torch", "save", lambda canary: (1, canary)),
    "numpy.savetxt": ("numpy", "savetxt", lambda canary: (canary, [1.0])),
    "logging.FileHandler": ("logging", "FileHandler", lambda canary: (canary,)),
}


def pickled(gadget: str, canary: str, protocol: int = 2, inside: bool = True) -> bytes:
    """A pickle, written by hand, of {"model": f(...)} or of f(...)."""
    module, name, arguments = GADGETS[gadget]
    body = pickle.dumps(arguments(canary), protocol)
    body = body[2:-1] if protocol >= 2 else body[:-1]
    if protocol >= 4:
        body = body[9:] if body[:1] == b"\x95" else body
        call = (
            b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93" + body + b"R"
        )
    else:
        call = b"c" + module.encode() + b"\n" + name.encode() + b"\n" + body + b"R"
    head = b"\x80" + bytes([protocol]) if protocol >= 2 else b""
    key = b"Vmodel\n"
    return head + (b"(" + key + call + b"d" if inside else call) + b"."


def zipped(data: bytes, method: int = zipfile.ZIP_STORED, **others: bytes) -> bytes:
    """A file of `torch.save`, since torch 1.6."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as table:
        table.writestr("archive/data.pkl", data)
        table.writestr("archive/version", b"3\n")
        table.writestr("archive/byteorder", b"little")
        for name, content in others.items():
            table.writestr(f"archive/{name}", content)
    return stream.getvalue()


def legacy(data: bytes) -> bytes:
    """A file of `torch.save` before 1.6: three pickles of facts, then the object."""
    facts = [
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}},
    ]
    return b"".join(pickle.dumps(fact, 2) for fact in facts) + data + pickle.dumps([], 2)


def very_old(data: bytes) -> bytes:
    """A file of `torch.save` before 0.1.10: a tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as table:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            table.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def script(data: bytes) -> bytes:
    """A TorchScript archive."""
    return zipped(
        data, constants_pkl=data, **{"code/__torch__.py": b"import os\nos.system('touch canary')\n", "constants.pkl": data}
    )


CONTAINERS: dict[str, Callable[[str, str], bytes]] = {
    "a zip": lambda gadget, canary: zipped(pickled(gadget, canary)),
    "a legacy file": lambda gadget, canary: legacy(pickled(gadget, canary)),
    "a pickle of protocol 0": lambda gadget, canary: pickled(gadget, canary, 0),
    "a pickle of protocol 4": lambda gadget, canary: pickled(gadget, canary, 4, inside=False),
    "a tar": lambda gadget, canary: very_old(pickled(gadget, canary)),
    "TorchScript": lambda gadget, canary: script(pickled(gadget, canary, inside=False)),
}
