"""How a machine image, or cloud-init, runs the bootstrap at each boot."""

from __future__ import annotations

# Beside it the image needs /opt/boxlink/bootstrap.pyz and the public key. The user-data of the instance is then the
# bootstrap's TOML alone; where cloud-init's own user-data is needed for this text, the TOML goes into a file.
CLOUD_CONFIG = """\
#cloud-config
write_files:
  - path: /etc/boxlink/trusted/fleet.pub
    permissions: "0644"
    content: |
      # the line of fleet.key.pub
  - path: /etc/boxlink/node.toml
    permissions: "0600"
    content: |
      store = "s3://bucket/prefix"
      role = "render"
      release = "fleet"
  - path: /etc/systemd/system/boxlink-bootstrap.service
    permissions: "0644"
    content: |
      [Unit]
      Description=boxlink: first boot, then the role
      Wants=network-online.target
      After=network-online.target
      [Service]
      Type=exec
      ExecStart=/usr/bin/python3 -I /opt/boxlink/bootstrap.pyz --user-data /etc/boxlink/node.toml
      Restart=always
      RestartSec=5
      TimeoutStopSec=180
      KillMode=mixed
      StandardOutput=journal+console
      StandardError=journal+console
      [Install]
      WantedBy=multi-user.target
runcmd:
  - [systemctl, enable, --now, boxlink-bootstrap.service]
"""
