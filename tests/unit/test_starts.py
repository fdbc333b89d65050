"""Starts are written once, however many processes of however many runs want the same."""

import threading
import time

from nlp_distill.starts import _once


def test_one_writes_and_the_others_wait(tmp_path):
    folder, wrote = tmp_path / "starts" / "abc", []

    def want():
        with _once(folder) as missing:
            if missing:
                time.sleep(0.05)
                wrote.append(folder.mkdir(parents=True))
                (folder / "config.json").write_text("{}")

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrote) == 1
