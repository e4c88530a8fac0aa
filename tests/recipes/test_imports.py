"""What takes long to import is imported where it is used, not at the start of each command."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from unveil.cli import imported

HEAVY = (
    "torch._dynamo torch._inductor torch.distributed.fsdp torch.distributed.tensor torchvision timm transformers datasets "
    "tokenizers sacrebleu scipy sklearn pandas pyarrow matplotlib fastapi"
)
FOUND = f"print('heavy:', *(name for name in '{HEAVY}'.split() if name in sys.modules))"


def python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.strip().splitlines()[-1]


def test_recipes_import_nothing_heavy_but_torch(tmp_path: Path) -> None:
    folder = Path(sys.modules["unveil"].__path__[0]) / "recipes"
    recipes = sorted(f"unveil.recipes.{path.stem}" for path in folder.glob("[a-z]*.py"))
    assert "unveil.recipes.pretrain" in recipes
    assert python(f"import sys, {', '.join(recipes)}; {FOUND}", tmp_path) == "heavy:"


def test_nothing_heavy_is_imported_before_the_first_step(tmp_path: Path) -> None:
    code = f"""
import sys
from unveil.recipes.pretrain import pretrain
from unveil.train.steps import Stepper
def first_step(*args):
    {FOUND}
    raise SystemExit(0)
Stepper.compute = first_step
pretrain("digits", out="run", epochs=1, device="cpu")
"""
    assert python(code, tmp_path) == "heavy:"


def test_torch_is_imported_without_looks_for_garbage(tmp_path: Path) -> None:
    code = (
        "import gc, sys; looks = []; gc.callbacks.append(lambda phase, info: looks.append('torch' in sys.modules))\n"
        "from unveil.cli import imported\n"
        "name = imported('unveil.recipes.pretrain', 'pretrain').__name__; found = any(looks)\n"
        "print(name, found, gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    assert python(code, tmp_path) == "pretrain False True True"


def test_nothing_is_said_to_have_leaked_at_the_end(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    code = "from unveil.cli import imported; imported('unveil.recipes.pretrain', 'pretrain'); import triton._C.libtriton"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_program_that_has_torch_already_keeps_its_garbage_collector() -> None:
    imported("torch", "Tensor")
    before = gc.get_freeze_count()
    assert imported("unveil.recipes.pretrain", "pretrain").__name__ == "pretrain"
    assert gc.get_freeze_count() <= before  # frozen objects may have gone
    assert gc.isenabled()
