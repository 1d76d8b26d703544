"""Every everyday module is published and served as torch answers. `make check-slow` runs it."""

from pathlib import Path

import pytest
from everyday_modules import MODULES, check_served, publish

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")  # torch's own on nested tensors, norms and compiling
@pytest.mark.parametrize("name", MODULES)
def test_module_is_served_as_torch_answers(tmp_path: Path, name: str) -> None:
    published, module = publish(MODULES[name], tmp_path)
    check_served(MODULES[name], published, module)
