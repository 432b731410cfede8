"""The driver of whole ceremonies: what every test uses that needs a running installation. There is no other.

- `site.Site` is an installation whose worker roles run in the test's own process, in a thread with a loop of its own:
  the product's own workers, activities, ledger, one-shot processes and keystores, and no start of a process for each
  role. It lives in a namespace of the session's one Temporal server (`site.SharedTemporal`, fixture `temporal`). Roles
  that a test wants to kill for real run as processes of their own: name them in `apart`.
- `house.House` is an installation seen through Temporal, with everybody's keys at hand: `init`, `unseal`, `reshard`,
  `start_recover`, `order`, `start_seal`, `drill`; each also as `start_...`, which gives a handle and leaves the signing
  to the test (`approve`, `decision`, `stop_by`). It works with any `Stack`: a `Site`, or one of real processes.
- `gates` stops an activity before its work, or after its work and before its answer, or cuts it off there, as if its
  worker had died.
- `reading` waits for ends and reads histories.

In a test of any folder, with the fixtures of `tests/conftest.py`:

    async def test_a_masterkey_is_given_to_its_recipient(house: House) -> None:
        name = house.fresh_name()
        made = await house.init(name, "sss", threshold=2, count=3)
        assert len(await house.unseal(name, made)) == 32

and for an installation that may be broken:

    site = Site.start(folder, temporal, keystores, apart={"orchestrator"})
    house = House.of(site, await site.connect())
    site.kill("orchestrator")           # SIGKILL, since it is a process; else its workers end, and nothing is answered
    site.start_again("orchestrator")    # another build: site.commands["orchestrator"] = [...] first

The command line is for `tests/cli`: a `Site` has `masterkey(...)` too, as every `Stack`.
"""
