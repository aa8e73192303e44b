"""The Ray cluster: join or start it, check and measure its machines, plan what each process gets.

- `connect`: join the cluster that the user names, or start a local one.
- `nodes`: list the machines, and call a function on each of them.
- `checks`: check that the machines run this tlray and share the paths of a job.
- `capacity`: measure free resources, and wait for them.
- `term_signal`: stop in order at SIGTERM.
- `resources`: divide cores and GPUs among workers, engines and reading tasks.
- `spot`: drain a machine that AWS is about to take away.
- `ray_private`: every use of Ray's private API.

Importing Ray takes a second: `connect` and `ray_private` import it inside functions. Modules that every command loads
import `nodes`, `capacity` and `checks`, which need Ray at their top, inside functions too.
"""
