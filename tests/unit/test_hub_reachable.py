"""Whether the Hub answers is asked the way that the libraries go: through a proxy where there is one."""

import socket

from nlp_distill.hub_data import hub_reachable


def test_through_a_proxy_where_there_is_one(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    assert not hub_reachable()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"127.0.0.1:{proxy.getsockname()[1]}"
        for given in (f"http://{address}", address):
            monkeypatch.setenv("HTTPS_PROXY", given)
            assert hub_reachable()
        monkeypatch.setenv("NO_PROXY", "hub.invalid")
        assert not hub_reachable()
        monkeypatch.delenv("NO_PROXY")
    assert not hub_reachable()
