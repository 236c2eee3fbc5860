"""Running everything on a host: the processes, their supervisor, and the doctor."""
