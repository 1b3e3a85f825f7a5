"""Labels where they count: in a guest whose kernel enforces, beside a dockerd --selinux-enabled."""
