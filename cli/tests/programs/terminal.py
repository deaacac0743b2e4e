"""Drives a shell at a terminal of its own: job control above and below the tool, whose path is the argument."""
import pty,os,time,select,sys,signal
pid,fd=pty.fork()
if pid==0:
    os.environ['PS1']='P> '; os.environ.pop('PROMPT_COMMAND',None)
    os.execvp('bash',['bash','--norc','--noprofile','-i'])
buf=b''
T=sys.argv[1].encode()
def rd(until,t=8):
    global buf
    end=time.time()+t
    while time.time()<end:
        r=until not in buf and select.select([fd],[],[],0.1)[0]
        if until not in buf and r:
            try: buf+=os.read(fd,65536)
            except OSError: break
        if until in buf:
            # What follows is for the next one to find.
            out,_,buf=buf.partition(until); return out+until
    print("MISSING",until,buf[-400:]); sys.exit(1)
def w(s): os.write(fd,s)
rd(b'P> ')
w(b''+T+b' run -- sleep 50\n'); time.sleep(0.6)
w(b'\x1a'); o=rd(b'Stopped'); print('ctrl-z ok'); rd(b'P> ')
w(b'fg\n'); time.sleep(0.4); w(b'\x03'); rd(b'P> '); w(b'echo rc=$?\n'); o=rd(b'P> '); assert b'rc=130' in o, 'ctrl-c rc'
w(b'PS1="Q> " '+T+b' run -- bash --norc --noprofile -i\n'); rd(b'Q> ')
w(b'sleep 40\n'); time.sleep(0.4); w(b'\x1a'); rd(b'Stopped'); rd(b'Q> '); w(b'fg\n'); time.sleep(0.3); w(b'\x03'); rd(b'Q> '); print('inner job control ok')
w(b'exit 3\n'); rd(b'P> '); w(b'echo rc=$?\n'); assert b'rc=3' in rd(b'P> '), 'inner bash exit'
w(b'exit\n')
