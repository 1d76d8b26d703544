"""A path for a socket: one live server has it, a dead one's is removed, other files are not touched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fitserve_service.listening import ListenError
from fitserve_service.unix_socket import MAX_PATH_BYTES, SocketClaim, created_privately, path_of, target_of

HOLDS = """
import sys
from fitserve_service.unix_socket import SocketClaim
claim = SocketClaim(sys.argv[1])
print("got", flush=True)
sys.stdin.read()
"""


def listening_at(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


def test_what_a_dead_server_left_is_removed_and_nothing_stays_behind(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening_at(path).close()
    claim = SocketClaim(f"unix:{path}")
    assert not path.exists()
    claim.close()
    assert list(tmp_path.iterdir()) == []


def test_a_live_server_is_not_robbed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening_at(path), pytest.raises(ListenError, match="is in use: stop the server"):
        SocketClaim(f"unix:{path}")
    assert path.is_socket()


def test_a_claim_holds_before_anybody_listens_and_ends_with_its_process(tmp_path: Path) -> None:
    host = f"unix:{tmp_path / 's'}"
    command = [sys.executable, "-c", HOLDS, host]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "got\n"
        with pytest.raises(ListenError, match="is in use"):
            SocketClaim(host)
        holder.kill()
        holder.wait()
        SocketClaim(host).close()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_other_files_are_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ListenError, match="expected no file there, or the socket of a server that has ended"):
        SocketClaim(f"unix:{path}")
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize("content", ["mine", ""])
def test_only_an_empty_lock_is_one_that_a_dead_server_left(tmp_path: Path, content: str) -> None:
    lock = tmp_path / "s.lock"
    lock.write_text(content)
    if content:
        with pytest.raises(ListenError, match=r"expected no file .*/s\.lock, or the empty one of a server"):
            SocketClaim(f"unix:{tmp_path / 's'}")
        assert lock.read_text() == content
    else:
        SocketClaim(f"unix:{tmp_path / 's'}").close()
        assert not lock.exists()


def test_a_path_that_cannot_be_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=f"of 1 to {MAX_PATH_BYTES} bytes, got 108; choose a shorter folder"):
        SocketClaim("unix:/" + "a" * 107)
    with pytest.raises(ListenError, match=r"got two slashes, after which gRPC expects a host; write unix:run/s or"):
        SocketClaim("unix://run/s")
    with pytest.raises(ListenError, match="of 1 to 107 bytes, got 0"):
        SocketClaim("unix:")
    with pytest.raises(ListenError, match="No such file or directory; choose a path in a folder that exists"):
        SocketClaim(f"unix:{tmp_path}/none/s")


def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with created_privately("unix:x"), listening_at(tmp_path / "s"):
            assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
        assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_paths_are_written_as_grpc_reads_them() -> None:
    assert path_of("unix:///run/s") == path_of("unix:/run/s") == "/run/s"
    assert path_of("unix:s") == "s"
    assert target_of("unix:/run/100%41") == "unix:/run/100%2541"
