from steerserve.core.process import SPIN_COUNT, limit_spinning


def test_threads_spin_shortly_by_default() -> None:
    environ: dict[str, str] = {}
    limit_spinning(environ)
    assert environ == {"GOMP_SPINCOUNT": SPIN_COUNT}


def test_the_users_own_choice_of_waiting_stays() -> None:
    environ = {"OMP_WAIT_POLICY": "active"}
    limit_spinning(environ)
    assert environ == {"OMP_WAIT_POLICY": "active"}
