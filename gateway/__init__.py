"""The HTTP API, the dispatcher around the scheduler, and the control and data sockets. Its rooms:

``api`` speaks HTTP; ``service`` carries requests through their stages; ``stages`` is the side towards stage servers;
``storage`` keeps what outlives a request; ``shell`` puts the process together.
"""
