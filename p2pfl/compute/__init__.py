"""Where training and evaluation run. One protocol: `await compute.run(job)`. Roles do not know which it is."""
