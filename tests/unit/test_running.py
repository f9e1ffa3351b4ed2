"""Several servers of one project, and who is found."""

from pathlib import Path

from pipeline.running import find_server, forget_server, note_server
from tests.servers import another_server


def found(root: Path, *, follows: bool = False) -> str | None:
    server = find_server(root, follows=follows)
    return None if server is None else server.model


def test_a_server_of_a_folder_does_not_hide_the_one_that_follows(tmp_path: Path) -> None:
    assert found(tmp_path) is None
    note_server(tmp_path, "http://here", "ours", follows=True)
    with another_server(tmp_path, follows=False):
        assert found(tmp_path, follows=True) == found(tmp_path) == "ours"
    assert found(tmp_path) == "ours", "the other one has forgotten itself alone"
    forget_server(tmp_path)
    assert found(tmp_path) is None


def test_of_two_servers_of_folders_the_last_one_is_found_while_it_runs(tmp_path: Path) -> None:
    note_server(tmp_path, "http://here", "ours", follows=False)
    with another_server(tmp_path, follows=False):
        assert found(tmp_path) == "theirs"
        assert found(tmp_path, follows=True) is None
    assert found(tmp_path) == "ours"
    forget_server(tmp_path)


def test_a_server_that_was_killed_is_not_found_and_its_file_goes(tmp_path: Path) -> None:
    with another_server(tmp_path, follows=True) as other:
        assert found(tmp_path) == "theirs"
        other.kill()
        other.wait()
        assert found(tmp_path) is None
    note_server(tmp_path, "http://here", "ours", follows=False)
    assert len(list((tmp_path / "runs" / "serving" / "servers").iterdir())) == 1
    forget_server(tmp_path)
