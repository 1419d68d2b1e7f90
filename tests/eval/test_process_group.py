"""What processes tell each other."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from torch.distributed import TCPStore

from tokkata.eval.process_group import exchange, gather


def test_alone_one_keeps_what_one_has():
    assert gather([("a.wav", None, "silent")]) == [("a.wav", None, "silent")]


def test_all_get_all_in_the_order_of_the_processes_however_much_it_is():
    # More than a store takes at once, and a name that is no UTF-8.
    items = [
        [(f"{rank}/{'x' * 80}{number}.wav", "0" * 64, "") for number in range(60_000)] for rank in range(2)
    ]
    items[1].append(("\udcff é.wav", None, "is no audio"))
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    client = TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=30))
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(
                lambda rank, store: exchange(items[rank], "call", store, rank, 2), (0, 1), (server, client)
            )
        )
    assert found == [items[0] + items[1]] * 2
