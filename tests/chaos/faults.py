"""How each fault is done. One that finds nothing to hit does nothing, and isn't counted."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

import redis
from machines import QUEUE, Agenda, Server, Worker, Workers
from plan import Fault
from runs import Run

from rqmr.sessions import send

#: Change a chunk, unless it went meanwhile: it would come back in a key without a TTL.
_DAMAGE = "return redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 and redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])"
#: Two commands at once go on with the run of a killed driver in so many cases out of one.
_BOTH = 0.3
#: From one cut of the connections to the next.
_CUT_SECONDS = 0.1


class Faults:
    """Strikes at what there is at the moment."""

    def __init__(self, server: Server, workers: Workers, agenda: Agenda) -> None:
        self._server = server
        self._workers = workers
        self._agenda = agenda
        self._runs: Sequence[Run] = ()  # of this round
        self._kinds: dict[str, Callable[[Fault, Run], bool]] = {
            "horse killed": self._kill_horse,
            "worker killed": self._kill_worker,
            "machine killed": self._kill_machine,
            "all machines killed": self._kill_all_machines,
            "worker told to leave": self._dismiss_worker,
            "machine told to leave": self._dismiss_machine,
            "horse stopped": self._stop_horse,
            "worker stopped": self._stop_worker,
            "machine stopped": self._stop_machine,
            "driver killed": self._kill_driver,
            "driver stopped": self._stop_driver,
            "driver joined": self._join,
            "server paused": self._pause_server,
            "server restarted": self._restart_server,
            "server killed": self._kill_server,
            "server forgot": self._make_server_forget,
            "connections cut": self._cut,
            "scripts flushed": self._flush_scripts,
            "ticket deleted": self._delete_ticket,
            "segment deleted": self._delete_segment,
            "segment damaged": self._damage_segment,
            "shuffle deleted": self._delete_shuffle,
        }

    def strike(self, fault: Fault, runs: Sequence[Run]) -> bool:
        """Do a fault, to one of the runs if it is about one; return whether there was anything to hit."""
        living = [run for run in runs if not run.is_over]
        if not living:
            return False
        self._runs = runs
        run = fault.choose(living)
        try:
            return self._kinds[fault.kind](fault, run)
        except redis.RedisError:
            return False  # the server is away or loads its data

    # --- machines ---------------------------------------------------------------------------------------------

    def _kill_horse(self, fault: Fault, run: Run) -> bool:
        horses = self._workers.horses()
        if horses:
            send(signal.SIGKILL, [fault.choose(horses)])
        return bool(horses)

    def _kill_worker(self, fault: Fault, run: Run) -> bool:
        workers = self._workers.alive()
        if workers:
            self._workers.kill(fault.choose(workers), fault.seconds)
        return bool(workers)

    def _kill_machine(self, fault: Fault, run: Run) -> bool:
        workers = self._workers.alive()
        if workers:
            self._kill_both(fault.choose(workers), fault.seconds)
        return bool(workers)

    def _kill_all_machines(self, fault: Fault, run: Run) -> bool:
        workers = self._workers.alive()
        for worker in workers:
            self._kill_both(worker, fault.seconds)
        send(signal.SIGKILL, self._workers.orphans())
        return bool(workers)

    def _kill_both(self, worker: Worker, seconds: float) -> None:
        assert worker.process
        worker.process.send_signal(signal.SIGSTOP)  # first, so that it forks no more
        send(signal.SIGKILL, self._workers.horses_of(worker))
        self._workers.kill(worker, seconds)

    def _dismiss_worker(self, fault: Fault, run: Run) -> bool:
        workers = self._workers.alive()
        if workers:
            process = fault.choose(workers).process
            assert process
            send(signal.SIGTERM, [process.pid])
        return bool(workers)

    def _dismiss_machine(self, fault: Fault, run: Run) -> bool:
        workers = self._workers.alive()
        if workers:
            worker = fault.choose(workers)
            assert worker.process
            send(signal.SIGTERM, [*self._workers.horses_of(worker), worker.process.pid])
        return bool(workers)

    def _stop_horse(self, fault: Fault, run: Run) -> bool:
        horses = self._workers.horses()
        if horses:
            self._stop([fault.choose(horses)], fault.seconds)
        return bool(horses)

    def _stop_worker(self, fault: Fault, run: Run) -> bool:
        workers = self._workers.alive()
        if workers:
            process = fault.choose(workers).process
            assert process
            self._stop([process.pid], fault.seconds)
        return bool(workers)

    def _stop_machine(self, fault: Fault, run: Run) -> bool:
        workers = self._workers.alive()
        if workers:
            worker = fault.choose(workers)
            assert worker.process
            self._stop([worker.process.pid], fault.seconds)
            self._stop(self._workers.horses_of(worker), fault.seconds)
        return bool(workers)

    def _stop(self, pids: list[int], seconds: float) -> None:
        send(signal.SIGSTOP, pids)
        self._agenda.add(seconds, lambda: send(signal.SIGCONT, pids))  # harmless to who isn't stopped

    # --- drivers ----------------------------------------------------------------------------------------------

    def _kill_driver(self, fault: Fault, run: Run) -> bool:
        drivers = run.drivers
        if drivers:
            fault.choose(drivers).kill()
            run.attach_later(fault.seconds, count=2 if fault.where < _BOTH else 1)
        return bool(drivers)

    def _stop_driver(self, fault: Fault, run: Run) -> bool:
        drivers = run.drivers
        if drivers:
            self._stop([fault.choose(drivers).process.pid], fault.seconds)
        return bool(drivers)

    def _join(self, fault: Fault, run: Run) -> bool:
        run.attach()
        return True

    # --- the server -------------------------------------------------------------------------------------------

    def _pause_server(self, fault: Fault, run: Run) -> bool:
        if not self._server.is_there:
            return False
        self._server.pause()
        self._agenda.add(fault.seconds, self._server.go_on)
        return True

    def _restart_server(self, fault: Fault, run: Run) -> bool:
        return self._end_server(signal.SIGTERM, fault)

    def _kill_server(self, fault: Fault, run: Run) -> bool:
        return self._end_server(signal.SIGKILL, fault)

    def _end_server(self, number: signal.Signals, fault: Fault) -> bool:
        if not self._server.answers():
            return False
        self._server.end(number)
        self._agenda.add(fault.seconds, self._server.begin)
        return True

    def _make_server_forget(self, fault: Fault, run: Run) -> bool:
        if not self._server.answers() or not all(each.may_be_set_back(fault.seconds) for each in self._runs):
            return False
        return self._server.forget(fault.seconds)

    def _cut(self, fault: Fault, run: Run) -> bool:
        for kind in ("NORMAL", "PUBSUB"):
            self._server.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        if fault.seconds > _CUT_SECONDS:
            again = replace(fault, seconds=fault.seconds - _CUT_SECONDS)
            self._agenda.add(_CUT_SECONDS, lambda: self.strike(again, [run]))
        return True

    def _flush_scripts(self, fault: Fault, run: Run) -> bool:
        self._server.client.script_flush()
        return True

    # --- data -------------------------------------------------------------------------------------------------

    def _delete_ticket(self, fault: Fault, run: Run) -> bool:
        queue = f"rq:queue:{QUEUE}"
        tickets = self._server.client.lrange(queue, 0, -1)
        return bool(tickets and self._server.client.lrem(queue, 1, fault.choose(tickets)))

    def _delete_segment(self, fault: Fault, run: Run) -> bool:
        shuffle, field = self._chunk(fault, run)
        return bool(field and self._server.client.hdel(shuffle, field))

    def _damage_segment(self, fault: Fault, run: Run) -> bool:
        shuffle, field = self._chunk(fault, run)
        data = bytearray(self._server.client.hget(shuffle, field) or b"") if field else bytearray()
        if not data:
            return False
        data[int(fault.seconds * len(data))] ^= 1
        return self._server.client.eval(_DAMAGE, 1, shuffle, field, bytes(data)) is not None

    def _delete_shuffle(self, fault: Fault, run: Run) -> bool:
        shuffles = self._shuffles(run)
        return bool(shuffles and self._server.client.unlink(fault.choose(shuffles)))

    def _chunk(self, fault: Fault, run: Run) -> tuple[bytes, bytes]:
        """Return a key and a field of it, which are empty if there is none."""
        fields = [
            (shuffle, field) for shuffle in self._shuffles(run) for field in sorted(self._server.client.hkeys(shuffle))
        ]
        return fault.choose(fields) if fields else (b"", b"")

    def _shuffles(self, run: Run) -> list[bytes]:
        return sorted(self._server.client.scan_iter(f"rqmr:{run.id}:s*:shuffle:*", count=10_000))
