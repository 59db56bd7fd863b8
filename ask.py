import socket
import sys

kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET, kind)
s.settimeout(5)
s.connect((sys.argv[2], int(sys.argv[3])))
s.send(b"who")
print("seen", s.recv(100).decode())
