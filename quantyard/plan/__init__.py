"""Plans: the stages that a command runs, with their requests and inputs."""
